"""What of the engine's memory is released: given back to the system until somebody wants it again.

    ReleaseMemory ──► no step is planned ──► (the worker gives it back) ──► MoveEnded
    ResumeMemory  ──► (the worker has it again) ──► MoveEnded ──► steps are planned

The worker's answer says what is released there, whatever has failed on the way: that is what holds from then on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import msgspec

from pawl.lifecycle.machines.memory import RESIDENCY, MemoryTag, Residency, ResidencyEvent
from pawl.lifecycle.snapshot import Plain
from pawl.loops.loop import Loop

UPDATING = "an update of the weights is under way"
MOVING = "memory is being released or resumed"
LIVE = "requests are live: wait until none is, or pause generation first"
READING = "adapters are being read: wait until they are loaded"
HELD = "requests keep their pages: pause generation in mode retract or abort"
DONE = {ResidencyEvent.RELEASE: "Memory occupation released.", ResidencyEvent.RESUME: "Memory occupation resumed."}
_WRONG = {ResidencyEvent.RELEASE: "already released", ResidencyEvent.RESUME: "not currently released"}


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker is asked for, until it has answered."""

    ticket: int
    """Counts moves; what is told of another one is late."""
    asker: int
    """The number under which the outcome is waited for."""
    event: ResidencyEvent
    tags: tuple[MemoryTag, ...]


class MemoryKeeper:
    """Which memory the loop's steps could be computed with."""

    def __init__(self, loop: Loop, updating: Callable[[], bool], answer: Callable[[int, bool, str], None]) -> None:
        """`updating`: whether new weights are being laid out or exchanged; `answer` hears of the outcome of a move."""
        self.move: Move | None = None
        self._loop = loop
        self._updating = updating
        self._answer = answer
        self._num_moves = 0

    def state(self, tag: MemoryTag) -> Residency:
        """Where this part is."""
        return Residency.RELEASED if tag in self._loop.released else Residency.RESIDENT

    def begin(self, event: ResidencyEvent, asked: Sequence[MemoryTag] | None, asker: int, now: float) -> str | None:
        """Somebody wants these released or resumed; None: all that can be. Why not, where nothing has changed; else
        the outcome is told later."""
        loop = self._loop
        tags = tuple(tag for tag in MemoryTag if (tag in asked if asked else self._can(event, tag)))
        refusal = self._refusal(event, tags)
        if refusal is not None:
            return refusal
        move = Move(ticket=self._num_moves + 1, asker=asker, event=event, tags=tags)
        if event is ResidencyEvent.RELEASE:
            if MemoryTag.KV_CACHE in tags:
                self._empty()
            after = loop.released | frozenset(tags)
            loop.journal.memory(event, tags, now)
            loop.released = after
        self._num_moves, self.move = move.ticket, move
        return None

    def ended(self, ticket: int, released: Collection[MemoryTag], message: str, now: float) -> None:
        """The worker has done what it was asked for, or has failed, which the message says; these are released there.

        Whatever fails here, the loop recovers: told again, it is done again."""
        move = self.move
        if move is None or move.ticket != ticket:
            return
        resident(self._loop, ResidencyEvent.RESUME, [tag for tag in move.tags if tag not in released], now)
        self.move = None
        self._answer(move.asker, not message, message or DONE[move.event])

    @property
    def facts(self) -> dict[str, Any]:
        """For whoever asks."""
        return {"released": [str(tag) for tag in MemoryTag if tag in self._loop.released]}

    def _can(self, event: ResidencyEvent, tag: MemoryTag) -> bool:
        state = self.state(tag)
        return any(move[:2] == (state, event) for move in RESIDENCY.moves)

    def _refusal(self, event: ResidencyEvent, tags: tuple[MemoryTag, ...]) -> str | None:
        loop = self._loop
        wrong = [tag for tag in tags or MemoryTag if not self._can(event, tag)]
        if wrong:
            return f"{', '.join(wrong)}: {_WRONG[event]}"
        if self.move is not None:
            return MOVING
        if MemoryTag.WEIGHTS in tags and self._updating():
            return UPDATING
        return in_the_way(loop, tags) if event is ResidencyEvent.RELEASE else None

    def _empty(self) -> None:
        """Nothing is in the prefix cache. Tiers below get what they are to keep of it, before it is released."""
        if not self._loop.memory.flush():
            raise AssertionError("pages are released that somebody owns")
        for companion in self._loop.companions:
            companion.emptied()

    # ---- checkpoints ----

    def snapshot(self) -> Plain:
        """All that decides."""
        return {**self.facts, "move": msgspec.to_builtins(self.move), "moves": self._num_moves}

    def restore(self, plain: Plain) -> None:
        """Go on from a snapshot."""
        self._loop.released = frozenset(map(MemoryTag, plain["released"]))
        self.move = msgspec.convert(plain["move"], Move | None)
        self._num_moves = plain["moves"]


def in_the_way(loop: Loop, tags: Collection[MemoryTag]) -> str | None:
    """What is at work with these, so that they cannot be released before it has ended; None: nothing is."""
    if loop.in_flight or not (loop.still or loop.idle):
        return LIVE
    if MemoryTag.KV_CACHE in tags and not loop.queues.owns_nothing:
        return HELD
    if MemoryTag.WEIGHTS in tags and any(companion.writes_weights for companion in loop.companions):
        return READING
    return None


def resident(loop: Loop, event: ResidencyEvent, tags: Sequence[MemoryTag], now: float) -> None:
    """Those of `tags` that are released are so no more."""
    back = tuple(tag for tag in tags if tag in loop.released)
    after = loop.released.difference(back)
    if back:
        loop.journal.memory(event, back, now)
    loop.released = after
