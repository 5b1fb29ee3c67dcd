"""An actor as others see it, wherever it runs."""

from __future__ import annotations

import threading
from enum import IntEnum
from typing import Any, Protocol

from pawl.actors.runtime.dead_letters import DeadLetters, Reason
from pawl.actors.runtime.mailbox import Edge, Mailbox, Outcome


class Phase(IntEnum):
    NEW = 0
    RUNNING = 1
    ENDED = 2


class Receiver(Protocol):
    """Takes the messages for one actor."""

    name: str
    phase: Phase
    over: threading.Event
    """Set when the last handler has returned and everybody concerned was told."""
    owner: int | None
    """Identifier of the thread that runs the actor, if one of this process does."""

    @property
    def mailbox(self) -> Mailbox:
        """Where its messages wait."""

    @property
    def num_contained(self) -> int:
        """Failures that the actor has survived."""

    def accepts(self, message_type: type) -> bool:
        """Whether messages of this type are let in."""

    def admit(self, message: Any, edge: Edge) -> bool:
        """Put a message into the mailbox if it is of an accepted type and there is room."""

    def ask_to_stop(self, reason: str) -> None:
        """Handle what waits, then end."""

    def cut(self) -> None:
        """End after the handler that runs now; what waits becomes dead letters."""

    def withdraw(self) -> None:
        """End without ever having begun."""


def not_accepted(dead_letters: DeadLetters, to: str, message: Any, edge: Edge, outcome: Outcome) -> bool:
    """What follows from a `put` that was not simply accepted. Whether the message will be handled all the same."""
    if outcome is Outcome.HELD:
        assert edge.sender_mailbox is not None
        edge.sender_mailbox.hold()
        return True
    if outcome is Outcome.CLOSED:
        dead_letters.add(to, edge.sender, message, Reason.RECEIVER_GONE)
    return False
