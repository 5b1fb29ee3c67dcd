"""A set of actors that run together, whatever runs them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from pawl.actors.runtime.actor import Actor, Lane, Overflow
from pawl.actors.runtime.dead_letters import DeadLetters


class ActorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one actor at about one moment."""

    alive: bool
    waiting_system: int
    waiting_control: int
    waiting_data: int
    most_data: int
    """The largest number of DATA messages that ever waited."""
    capacity: int
    delivered: int
    """Messages taken from the mailbox, timers included."""
    rejected: int
    """DATA messages refused because the mailbox was full."""
    dead_letters: int
    contained: int = 0
    """Failures that ended a request, or an answer, and not the actor."""


class System(Protocol):
    """What the three runtimes have in common."""

    dead_letters: DeadLetters

    def spawn(
        self,
        actor: Actor,
        name: str,
        *,
        capacity: int = 1024,
        overflow: Overflow = Overflow.REJECT,
    ) -> None:
        """Add an actor. It runs at once when the system has been started, else from `start` on; its mailbox takes
        messages from now on. Raises ValueError for a name in use."""

    def watch(self, watcher: str, watched: str) -> None:
        """Send `Down` to `watcher` when `watched` has failed for good, behind every earlier message of it. An actor
        that was stopped has answered everything itself: it sends no `Down`."""

    def start(self) -> None:
        """Run the actors."""

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        """Post from outside. False: it will never be handled (full, gone, unknown, not accepted)."""

    def stop(self, order: Sequence[str] = (), timeout_s: float = 30.0) -> tuple[str, ...]:
        """Stop actor after actor in this order (upstream first), the others afterwards, later spawned first. Each
        handles what waits in its mailbox, then is told `stopped`. It has `timeout_s` for that, whatever those before it
        took, and is cut off afterwards. Gives back the names that did not end at all."""

    def statistics(self) -> dict[str, ActorStatistics]:
        """Counters for each actor, by name."""
