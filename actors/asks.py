"""Questions to one other actor, each of which is answered exactly once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from pawl.actors.messages.control import Reply
from pawl.actors.runtime.actor import Actor, Lane, Timer

Answer = Callable[[Reply], None]


class AskExpired(msgspec.Struct, frozen=True, tag=True):
    """Timer: nobody answered this ticket in time."""

    ticket: int


class PendingAsk(msgspec.Struct):
    """A question that waits for its `Reply`."""

    answer: Answer
    timer: Timer
    timeout_s: float


class Asks:
    """The pending questions of one actor, which must accept `Reply` and `AskExpired` and pass them on."""

    def __init__(self, actor: Actor, answerer: str) -> None:
        self.num_late = 0
        """Replies that came when their ask had ended."""
        self._actor = actor
        self._answerer = answerer
        self._pending: dict[int, PendingAsk] = {}
        self._next_ticket = 1

    def ask(self, make: Callable[[int], Any], timeout_s: float, answer: Answer, lost: str | None = None) -> int:
        """Send `make(ticket)` to the answerer, unless that is `lost`; `answer` is called exactly once, with the reply
        or, after `timeout_s` or a loss, with one that says so. Returns the ticket."""
        context = self._actor.context
        ticket = self._next_ticket
        self._next_ticket += 1
        timer = context.after(timeout_s, AskExpired(ticket))
        self._pending[ticket] = PendingAsk(answer, timer, timeout_s)
        if lost is not None or not context.send(self._answerer, make(ticket), Lane.CONTROL):
            self.answer(Reply(ticket, False, lost or f"the {self._answerer} is not running"))
        return ticket

    def answer(self, reply: Reply) -> None:
        ask = self._pending.pop(reply.ticket, None)
        if ask is None:
            self.num_late += 1
            return
        ask.timer.cancel()
        ask.answer(reply)

    def expire(self, ticket: int) -> None:
        # The answer may have come just before its timer; then there is nothing left to expire.
        ask = self._pending.pop(ticket, None)
        if ask is not None:
            ask.answer(Reply(ticket, False, f"the {self._answerer} did not answer within {ask.timeout_s:g} s"))

    def fail(self, message: str) -> None:
        """Answer all that are pending."""
        for ticket in list(self._pending):
            self.answer(Reply(ticket, False, message))
