"""Who waits at the scheduler: for the outcome of an order, or for the answer to a question."""

from __future__ import annotations

from collections.abc import Callable, Set

import msgspec

from pawl.actors.control import Ask
from pawl.actors.messages.control import Reply
from pawl.loops.intake import Outcome


class Asker(msgspec.Struct, frozen=True):
    """Where a reply goes."""

    reply_to: str
    ticket: int


class Askers:
    """Each has a number, and is answered once through `send`."""

    def __init__(self, send: Callable[[str, Reply], object]) -> None:
        self._send = send
        self._waiting: dict[int, Asker] = {}
        self._opened: Asker | None = None
        """Who got a number last."""
        self._untold: list[tuple[int, int, Outcome]] = []
        """(the last of the steps that must have come back first, number of who asked, outcome)"""
        self._newest = 0

    def __contains__(self, number: int) -> bool:
        return number in self._waiting

    def open(self, ask: Ask) -> int:
        """The number of a new one."""
        self._newest += 1
        self._opened = self._waiting[self._newest] = Asker(ask.reply_to, ask.ticket)
        return self._newest

    def answer(self, number: int, outcome: Outcome, in_flight: int | None) -> None:
        """Tell an outcome, where nobody has yet; one that is told `after_steps` when the step `in_flight`, the newest,
        has come back. None: there is none."""
        if outcome.after_steps and in_flight is not None:
            self._untold.append((in_flight, number, outcome))
        elif (asker := self._waiting.get(number)) is not None:
            self._tell(number, Reply(asker.ticket, outcome.ok, outcome.message, outcome.facts))

    def _tell(self, number: int, reply: Reply) -> None:
        # In one line: who has an answer waits for none, wherever something fails.
        _ = self._send(self._waiting[number].reply_to, reply), self._waiting.pop(number)

    def settled(self, oldest: int | None) -> None:
        """Every step before `oldest` has come back, or was undone; None: all have."""
        while self._untold and (oldest is None or self._untold[0][0] < oldest):
            _, number, outcome = self._untold.pop(0)
            self.answer(number, outcome, None)

    def failed(self, ask: Ask | None, owed: Set[int], message: str) -> None:
        """Something failed, perhaps before `ask` had a number. Who is `owed` an answer gets one later, as those do who
        wait for steps; the rest should have had theirs."""
        if ask is not None and self._opened != Asker(ask.reply_to, ask.ticket):
            self.open(ask)
        self._end(self._waiting.keys() - owed - {number for _, number, _ in self._untold}, message)

    def stopped(self, message: str) -> None:
        """Nobody is answered otherwise any more."""
        for number in sorted(self._waiting):
            self._tell(number, Reply(self._waiting[number].ticket, False, message, unserved=True))

    def _end(self, numbers: Set[int], message: str) -> None:
        for number in sorted(numbers):
            self.answer(number, Outcome(False, message), None)
