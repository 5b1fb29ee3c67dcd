"""Asking an actor from a thread that is no actor: one message out, one reply or an error back, always with a time
limit. Actors do not ask, they send: their answers arrive as messages."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import Future
from typing import Any

from pawl.actors.runtime.mailbox import Edge
from pawl.actors.runtime.supervision import DeadLetters, Reason

CALLER = "caller"
"""The name to put into `reply_to`: replies sent there go by their `ticket` to the thread that asked."""


class Unanswered(Exception):
    """The actor asked will not answer: it does not exist, was full, or ended first."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}")
        self.name = name
        self.why = why


class Asks:
    """The asks that wait for their reply. Safe from any thread."""

    def __init__(self, dead_letters: DeadLetters) -> None:
        self._dead_letters = dead_letters
        self._tickets = itertools.count(1)
        self._waiting: dict[int, tuple[str, Future[Any]]] = {}
        self._lock = threading.Lock()

    def open(self, name: str) -> tuple[int, Future[Any]]:
        """A new ticket for an ask to `name`, and where its reply will be."""
        future: Future[Any] = Future()
        with self._lock:
            ticket = next(self._tickets)
            self._waiting[ticket] = (name, future)
        return ticket, future

    def close(self, ticket: int) -> None:
        """Nobody waits for this reply any more."""
        with self._lock:
            self._waiting.pop(ticket, None)

    def admit(self, message: Any, edge: Edge) -> bool:
        """A message sent to `CALLER`. One that no ask waits for is a dead letter."""
        with self._lock:
            found = self._waiting.pop(getattr(message, "ticket", 0), None)
        if found is None:
            self._dead_letters.add(CALLER, edge.sender, message, Reason.LATE_REPLY)
            return False
        found[1].set_result(message)
        return True

    def fail(self, name: str, why: str) -> None:
        """`name` has ended: whoever still waits for it learns so now."""
        with self._lock:
            lost = [ticket for ticket, (asked, _) in self._waiting.items() if asked == name]
            futures = [self._waiting.pop(ticket)[1] for ticket in lost]
        for future in futures:
            future.set_exception(Unanswered(name, why))
