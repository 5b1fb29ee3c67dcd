"""Questions to other actors, to one most of the time, each of which is answered exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import msgspec

from pawl.actors.control import Ask
from pawl.actors.control_row import Answer as Answer
from pawl.actors.messages.control import LATE, Reply
from pawl.actors.runtime.actor import Actor, Lane, Timer
from pawl.loops.recovery import FAILED_ORDER


class AskExpired(msgspec.Struct, frozen=True, tag=True):
    """Timer: nobody answered this ticket in time."""

    ticket: int


class PendingAsk(msgspec.Struct):
    """A question that waits for its `Reply`."""

    answer: Answer
    timer: Timer
    late: Callable[[int], Reply]
    """The answer, when none comes in time."""


class Asks:
    """The pending questions of one actor, which must accept `Reply` and `AskExpired` and pass them on."""

    def __init__(self, actor: Actor, answerer: str) -> None:
        self.num_late = 0
        """Replies that came when their ask had ended."""
        self._actor = actor
        self._answerer = answerer
        self._pending: dict[int, PendingAsk] = {}
        self._next_ticket = 1

    def ask(
        self, message: msgspec.Struct, timeout_s: float, answer: Answer, lost: str | None = None, to: str = ""
    ) -> int:
        """Put `message` to the answerer, or to the actor named, unless that is `lost`; `answer` is called exactly once,
        with the reply or, after `timeout_s` or a loss, with one that says so. Returns the ticket."""

        def late(ticket: int) -> Reply:
            text = f"the {to or self._answerer} {LATE} {timeout_s:g} s"
            return Reply(ticket, False, text, unserved=True)

        ticket, context = self.expect(timeout_s, answer, late), self._actor.context
        try:
            question = Ask(ticket, message, context.name)
            if lost is not None or not context.send(to or self._answerer, question, Lane.CONTROL):
                text = lost or f"the {to or self._answerer} is not running"
                self.answer(Reply(ticket, False, text, unserved=True))
        except Exception:
            self.withdraw(ticket)  # who asks is told by this, and nobody else knows of it
            raise
        return ticket

    def expect(self, timeout_s: float, answer: Answer, late: Callable[[int], Reply]) -> int:
        """Open a ticket: `answer` is called exactly once, with the reply that is handed in under it or, after
        `timeout_s`, with what `late` makes of the ticket."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._pending[ticket] = PendingAsk(answer, self._actor.context.after(timeout_s, AskExpired(ticket)), late)
        return ticket

    def answer(self, reply: Reply) -> None:
        """Close the reply's ticket; one that is closed already is counted."""
        if reply.ticket in self._pending:
            self._tell(self._close(reply.ticket), reply)
        else:
            self.num_late += 1

    def expire(self, ticket: int) -> None:
        # The answer may have come just before its timer; then there is nothing left to expire.
        if ticket in self._pending:
            self.answer(self._pending[ticket].late(ticket))

    def withdraw(self, ticket: int) -> None:
        """Nobody waits for an answer any more."""
        if self.waits(ticket):
            self._close(ticket)

    def _close(self, ticket: int) -> PendingAsk:
        self._pending[ticket].timer.cancel()
        return self._pending.pop(ticket)

    def _tell(self, ask: PendingAsk, reply: Reply) -> None:
        """What fails at the answer is told so: who asked must not wait for ever. Who cannot take that either is the
        only one who misses it."""
        try:
            ask.answer(reply)
        except Exception as error:
            self._actor.told_of(error, ticket=reply.ticket)
            with suppress(Exception):
                ask.answer(Reply(reply.ticket, False, FAILED_ORDER))

    def waits(self, ticket: int) -> bool:
        """Whether nobody has answered yet."""
        return ticket in self._pending

    def fail(self, message: str, tickets: Iterable[int] | None = None) -> None:
        """Answer those of these that are pending; None: all."""
        for ticket in list(self._pending if tickets is None else filter(self.waits, tickets)):
            self.answer(Reply(ticket, False, message, unserved=True))
