"""What the scheduler tells itself in a while, and its timer for a step that was made to wait."""

from __future__ import annotations

import msgspec

from pawl.actors.runtime.actor import Actor, Timer
from pawl.loops.loop import Loop


class HeartbeatDue(msgspec.Struct, frozen=True, tag=True):
    """Timer: tell the watchdog that messages are handled."""


class SelfCheck(msgspec.Struct, frozen=True, tag=True):
    """Timer: the engine has been idle for a while."""


class TurnDue(msgspec.Struct, frozen=True, tag=True):
    """Timer: a step that was made to wait may be launched, which is done when the scheduler settles."""


class TurnTimer:
    """Wakes the scheduler `actor`, which sleeps meanwhile and handles whatever comes."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self._set: tuple[float, Timer] | None = None
        """When it is due."""

    def settled(self, loop: Loop, now: float) -> None:
        """The loop has turned: have it turn again when its next step is due, if that is later, and not when it was
        due before."""
        due_at = loop.limits.due_at
        if self._set is not None and self._set[0] != due_at:
            self._set[1].cancel()
            self._set = None
        if self._set is None and due_at > now and not loop.queues.idle:
            self._set = due_at, self._actor.context.after(due_at - now, TurnDue())

    def fired(self) -> None:
        """It is time."""
        self._set = None
