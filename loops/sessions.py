"""Sessions: the tokens of earlier turns, from which later ones go on.

A session is a tree of turns. A turn is a request whose prompt is the tokens of another turn of the session (all, or
those before `offset`), and its own behind them. It becomes part of the tree when it finishes; one that ends otherwise
leaves the session as it was, whatever it was to replace. Only tokens are kept here: the pages of a turn are ordinary
pages of the prefix cache, which the next turn finds there if they have not had to leave.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pawl.lifecycle.machines.session import SESSION, SessionEvent, SessionPhase
from pawl.memory.arrays import Int32s

MAX_SESSIONS = 4096
"""Open at a time."""


@dataclass(eq=False)
class Turn:
    """One turn, live or finished."""

    rid: str
    parent: Turn | None
    """The finished turn that it goes on from."""
    kept: int
    """Tokens of the parent that it begins with."""
    own: Int32s
    """Those behind them, [n]: of its prompt, and when it has finished of its output."""
    num_prompt: int
    request: int = 0
    """Its number."""
    most: int = 0
    """Tokens of its own that it may come to have, while it is live."""
    replaces: tuple[Turn, ...] = ()
    """Turns that leave, with all that went on from them, when it finishes."""
    children: list[Turn] = field(default_factory=list)

    @property
    def tokens(self) -> Int32s:
        """All of them, int32 [n]."""
        parts: list[Int32s] = [self.own]
        kept, turn = self.kept, self.parent
        while turn is not None and kept:
            if kept > turn.kept:
                parts.append(turn.own[: kept - turn.kept])
            kept, turn = min(kept, turn.kept), turn.parent
        return np.concatenate(parts[::-1])

    def line(self) -> Iterator[Turn]:
        """The turn, and those that it goes on from."""
        turn: Turn | None = self
        while turn is not None:
            yield turn
            turn = turn.parent


@dataclass(eq=False)
class Session:
    """One session."""

    name: str
    capacity: int
    """Tokens that all turns together may hold; what they share counts once."""
    timeout_s: float
    """How long it stays without a turn; 0: for ever."""
    streaming: bool
    """Each turn goes on from the one before, and nothing else."""
    phase: SessionPhase = SESSION.start
    num_uses: int = 0
    """Times that it was opened, or that a turn ended, from where `MOST_USES` says: an order that it expires holds for
    one of them."""
    turns: dict[str, Turn] = field(default_factory=dict)
    """Finished ones by name, each behind the one that it goes on from."""
    live: dict[int, Turn] = field(default_factory=dict)
    """By number of the request."""

    @property
    def size(self) -> int:
        """Tokens that its turns hold, or may come to hold."""
        return sum(len(turn.own) for turn in self.turns.values()) + sum(turn.most for turn in self.live.values())


class Wish(NamedTuple):
    """What a client asks of a session."""

    request: int
    rid: str
    session: str
    parent: str | None
    offset: int
    replace: bool
    drop_previous_output: bool
    tokens: Int32s
    max_new_tokens: int
    scored_from: int


class Begun(NamedTuple):
    """A turn that may begin, or why not."""

    request: int
    turn: Turn | None
    session: Session | None
    refusal: str = ""
    ends: tuple[int, ...] = ()
    """Requests of live turns that it takes the place of."""


class Refused(Exception):
    """A turn cannot begin."""


class Sessions:
    """All sessions of one loop."""

    def __init__(self) -> None:
        self.by_name: dict[str, Session] = {}
        self.expire_in: Callable[[Session], None] = lambda session: None
        """Told when a session begins to wait for a turn."""
        self._of: dict[int, Session] = {}
        """By number of a live turn's request."""

    # ---- sessions ----

    def open(self, session: Session) -> str:
        """Take a new session. Why not; empty when it is open."""
        if session.name in self.by_name:
            return f"session {session.name!r} is open already"
        if len(self.by_name) >= MAX_SESSIONS:
            return f"{MAX_SESSIONS} sessions are open already; close one first"
        self.by_name[session.name] = session
        self._used(session)
        return ""

    def close(self, name: str, event: SessionEvent = SessionEvent.CLOSE) -> bool:
        """Take no more turns, and forget the session once none is live. False when there is none of this name."""
        session = self.by_name.get(name)
        if session is None:
            return False
        session.phase = SESSION.next(session.phase, event)
        self._settle(session)
        return True

    def expire(self, name: str, num_uses: int) -> None:
        """Close a session that nobody has used since."""
        session = self.by_name.get(name)
        unused = session is not None and session.num_uses == num_uses and not session.live
        if unused and session is not None and session.phase is SessionPhase.OPEN:
            self.close(name, SessionEvent.EXPIRE)

    def _used(self, session: Session) -> None:
        session.num_uses += 1
        if session.timeout_s:
            self.expire_in(session)

    def _settle(self, session: Session) -> None:
        if session.phase is SessionPhase.CLOSING and not session.live:
            settled = SESSION.next(session.phase, SessionEvent.SETTLE)
            del self.by_name[session.name]
            session.phase = settled

    def recovered(self, live: Container[int]) -> None:
        """The loop has failed in the middle of something: turns are those of requests that are `live`."""
        for session in list(self.by_name.values()):
            session.live = {request: turn for request, turn in session.live.items() if request in live}
            self._settle(session)
        self._of = {request: session for session in self.by_name.values() for request in session.live}

    # ---- turns ----

    def begin(self, wish: Wish, tokens_of: Callable[[int], Int32s]) -> Begun:
        """The turn that `wish` asks for; nothing has changed yet. `tokens_of`: the known tokens of a live request."""
        session = self.by_name.get(wish.session)
        if session is None:
            return Begun(wish.request, None, None, f"there is no session {wish.session!r}")
        try:
            return self._begin(session, wish, tokens_of)
        except Refused as refused:
            return Begun(wish.request, None, session, str(refused))

    def _begin(self, session: Session, wish: Wish, tokens_of: Callable[[int], Int32s]) -> Begun:
        if session.phase is not SessionPhase.OPEN:
            raise Refused(f"session {session.name!r} is {session.phase}")
        live = {turn.rid: turn for turn in session.live.values()}
        if wish.rid in session.turns or wish.rid in live:
            raise Refused(f"session {session.name!r} has a turn {wish.rid!r}: name another rid")
        parent, kept, rest = self._context(session, wish, live, tokens_of)
        own = np.concatenate((rest, wish.tokens))
        if wish.scored_from >= kept + len(own):
            raise Refused(f"the prompt has {kept + len(own)} tokens: none to score from {wish.scored_from} on")
        replaced: tuple[Turn, ...] = ()
        ends: tuple[int, ...] = ()
        if wish.replace:
            replaced, ends = self._replaced(session, wish, parent, live)
        most = len(own) + wish.max_new_tokens
        left = session.capacity - session.size + sum(session.live[request].most for request in ends)
        if session.capacity and most > left:
            raise Refused(f"session {session.name!r} has room for {max(left, 0)} tokens, and the turn may need {most}")
        turn = Turn(wish.rid, parent, kept, own, kept + len(own), wish.request, most, replaced)
        return Begun(wish.request, turn, session, "", ends)

    def _context(
        self, session: Session, wish: Wish, live: dict[str, Turn], tokens_of: Callable[[int], Int32s]
    ) -> tuple[Turn | None, int, Int32s]:
        """(the finished turn it goes on from, how many of that one's tokens it keeps, what stands between those and
        its own)"""
        nothing = np.empty(0, np.int32)
        name = wish.parent
        if session.streaming:
            if wish.replace or wish.offset or wish.drop_previous_output or name is not None:
                raise Refused("a streaming session only goes on: send neither rid, offset, replace nor drop")
            if live:
                raise Refused("the turn before has not ended")
            name = next(iter(session.turns), None)
        if name is None:
            return None, 0, nothing
        parent = session.turns.get(name)
        if parent is None and (name not in live or not wish.replace):
            state = "has not ended" if name in live else "is not there"
            raise Refused(f"turn {name!r} of session {session.name!r} {state}")
        if parent is not None:
            if any(other in replacing.replaces for replacing in live.values() for other in parent.line()):
                raise Refused(f"turn {name!r} of session {session.name!r} is being replaced")
            known = parent.kept + len(parent.own)
            return parent, _cut(known, parent.num_prompt, wish), nothing
        running = live[name]
        tokens = tokens_of(running.request)
        cut = _cut(len(tokens), running.num_prompt, wish)
        kept = min(cut, running.kept)
        return running.parent, kept, tokens[kept:cut].copy()

    def _replaced(
        self, session: Session, wish: Wish, parent: Turn | None, live: dict[str, Turn]
    ) -> tuple[tuple[Turn, ...], tuple[int, ...]]:
        """(turns that leave when it finishes, requests of live turns that end at once)"""
        if wish.parent in live:
            running = live[wish.parent]
            return running.replaces, (running.request,)
        leaving = [turn for turn in session.turns.values() if turn.parent is parent]
        ending = [t.request for t in live.values() if parent is None or parent in t.line()]
        return tuple(leaving), tuple(ending)

    def went_live(self, begun: Begun) -> None:
        """The turn's request is in the queue."""
        if begun.turn is not None and begun.session is not None:
            begun.session.live[begun.turn.request] = begun.turn
            self._of[begun.turn.request] = begun.session

    def ended(self, request: int, output: Int32s | None) -> None:
        """A request has ended; `output` is all of it where it has finished. Nothing happens where it is no turn, or
        this was said before."""
        session = self._of.pop(request, None)
        if session is None:
            return
        turn = session.live.pop(request)
        if output is not None:
            self._finished(session, turn, output)
        self._used(session)
        self._settle(session)

    def _finished(self, session: Session, turn: Turn, output: Int32s) -> None:
        for replaced in turn.replaces:
            _leave(session, replaced)
        turn.own, turn.replaces, turn.most = np.concatenate((turn.own, output)), (), 0
        if session.streaming:
            turn.own, turn.parent, turn.kept = turn.tokens, None, 0
            session.turns.clear()
        elif turn.parent is not None:
            turn.parent.children.append(turn)
        session.turns[turn.rid] = turn

    # ---- checkpoints ----

    def snapshot(self) -> list[Any]:
        """All that decides."""
        return [_plain(session) for session in self.by_name.values()]

    def restore(self, plain: list[Any]) -> None:
        """Become what the snapshot is of."""
        for name, capacity, timeout_s, streaming, phase, num_uses, turns, live in plain:
            session = Session(name, capacity, timeout_s, streaming, SessionPhase(phase), num_uses)
            self.by_name[session.name] = session
            for each in turns:
                turn = _turn(session, each)
                session.turns[turn.rid] = turn
                if turn.parent is not None:
                    turn.parent.children.append(turn)
            for each in live:
                turn = _turn(session, each)
                session.live[turn.request] = turn
                self._of[turn.request] = session


def _cut(known: int, num_prompt: int, wish: Wish) -> int:
    """How many of `known` tokens a turn goes on from."""
    most = num_prompt if wish.drop_previous_output else known
    if not wish.offset:
        return most
    return min(most, wish.offset) if wish.offset > 0 else max(most + wish.offset, 0)


def _leave(session: Session, turn: Turn) -> None:
    """The turn, and all that goes on from it, is no part of the session any more."""
    if session.turns.get(turn.rid) is not turn:
        return
    if turn.parent is not None:
        turn.parent.children.remove(turn)
    stack = [turn]
    while stack:
        each = stack.pop()
        stack += each.children
        del session.turns[each.rid]


def _plain(session: Session) -> tuple[Any, ...]:
    turns = [_plain_turn(turn) for turn in session.turns.values()]
    live = [_plain_turn(turn) for turn in session.live.values()]
    head = session.name, session.capacity, session.timeout_s, session.streaming
    return *head, str(session.phase), session.num_uses, turns, live


def _plain_turn(turn: Turn) -> tuple[Any, ...]:
    parent = None if turn.parent is None else turn.parent.rid
    replaces = [each.rid for each in turn.replaces]
    return turn.rid, parent, turn.kept, turn.own.tobytes(), turn.num_prompt, turn.request, turn.most, replaces


def _turn(session: Session, plain: Any) -> Turn:
    rid, parent, kept, own, num_prompt, request, most, replaces = plain
    above = None if parent is None else session.turns[parent]
    tokens = np.frombuffer(own, np.int32)
    return Turn(rid, above, kept, tokens, num_prompt, request, most, tuple(session.turns[each] for each in replaces))
