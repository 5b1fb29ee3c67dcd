"""An actor in another process, as those here see it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from pawl.actors.runtime.actor import Down, Lane, Overflow
from pawl.actors.runtime.dead_letters import DeadLetters, Reason
from pawl.actors.runtime.mailbox import ACCEPTED, Edge, Entry
from pawl.actors.runtime.processes.frames import Card, Eager, Stop, Word
from pawl.actors.runtime.processes.mailboxes import Outbox
from pawl.actors.runtime.receiver import Phase, not_accepted


class Mark(NamedTuple):
    """Stands in an outbox behind everything that was sent before, and is told when all of that was taken."""

    passed: Callable[[], None]


class Carrier(Protocol):
    """What a remote cell needs from its link."""

    def ready(self, cell: RemoteCell) -> None:
        """It has something to be sent."""

    def say(self, word: Word) -> None:
        """Tell the other process."""


class RemoteCell:
    """A `Receiver` whose messages go over a link. It outlives the process that it stands for: where that is started
    again, the cell is renewed, and whoever sends to it goes on."""

    owner: int | None = None
    num_contained = 0

    def __init__(self, dead_letters: DeadLetters, link: Carrier, card: Card) -> None:
        self.name = card.name
        self._dead_letters = dead_letters
        self.renew(link, card)

    def renew(self, link: Carrier, card: Card) -> None:
        """The actor runs (again), at the other end of `link`."""
        self.link = link
        self.card = card
        self.phase = Phase.RUNNING
        self.over = threading.Event()
        self.mailbox = Outbox(card.capacity, Overflow(card.overflow), lambda: link.say(Eager(card.name)))
        self.mailbox.wake = lambda: link.ready(self)
        link.ready(self)

    def accepts(self, message_type: type) -> bool:
        """Whether messages of this type are let in, as far as it is known here."""
        return message_type is not Down or self.card.hears_down

    def admit(self, message: Any, edge: Edge) -> bool:
        """Put a message on the way if there is room for it."""
        outcome = self.mailbox.put(message, edge)
        return outcome is ACCEPTED or not_accepted(self._dead_letters, self.name, message, edge, outcome)

    def mark(self, passed: Callable[[], None]) -> bool:
        """Have `passed` called when all was taken that was sent so far. False: the actor has ended."""
        return self.mailbox.put_fenced(Mark(passed), Edge("", Lane.SYSTEM, None))

    def ask_to_stop(self, reason: str) -> None:
        """Handle what waits, then end."""
        self.mark(lambda: self.link.say(Stop(self.name, reason, False)))

    def cut(self) -> None:
        """End after the handler that runs now; what waits becomes dead letters."""
        self.link.say(Stop(self.name, "", True))

    def withdraw(self) -> None:
        """Nobody here sends to it any more."""
        if self.phase is Phase.RUNNING:
            self.end(self.mailbox.close_sent(), Reason.RECEIVER_GONE)

    def end(self, left: list[Entry], reason: Reason) -> None:
        """It has ended; `left` is what it never took."""
        self.phase = Phase.ENDED
        for message, edge, _ in left:
            if isinstance(message, Mark):
                message.passed()
            else:
                self._dead_letters.add(self.name, edge.sender, message, reason)
        self.over.set()
