"""A world for one actor under test: no threads, a clock that is moved by hand, sends that are written down."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.timers import ActorTimer, TimerQueue


class Sent(NamedTuple):
    """One message the actor sent."""

    to: str
    message: Any
    lane: Lane


class ManualContext:
    """`Context` of one actor in a test.

        context = ManualContext(actor, "watchdog")     # started() has been called
        actor.receive(message)
        context.advance(1.0)                           # timers that come due are received on the way
        assert context.take_sent() == [Sent(...)]

    Names in `full` refuse DATA, names in `gone` refuse everything.
    """

    def __init__(self, actor: Actor, name: str, *, seed: int = 0, epoch_s: float = 1_000_000.0) -> None:
        self.name = name
        self.sent: list[Sent] = []
        self.full: set[str] = set()
        self.gone: set[str] = set()
        self._actor = actor
        self._now = 0.0
        self._epoch_s = epoch_s
        self._random = random.Random(seed)
        self._timers = TimerQueue()
        actor.context = self
        actor.started()

    def now(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._epoch_s + self._now

    @property
    def random(self) -> random.Random:
        return self._random

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        if to in self.gone or (to in self.full and lane is Lane.DATA):
            return False
        self.sent.append(Sent(to, message, lane))
        return True

    def after(self, delay_s: float, message: Any) -> ActorTimer:
        return self._timers.add(self._now + delay_s, message)

    def take_sent(self) -> list[Sent]:
        """What was sent since the last call, oldest first."""
        taken, self.sent = self.sent, []
        return taken

    def advance(self, seconds: float) -> None:
        """Move the clock; each timer that comes due is received at its own time, then the actor settles."""
        until = self._now + seconds
        while (due := self._timers.next_due()) is not None and due <= until:
            self._now = max(self._now, due)
            timer = self._timers.pop_due(due)
            if timer is not None and timer.claim():
                self._actor.receive(timer.message)
                self._actor.settled()
        self._now = until
