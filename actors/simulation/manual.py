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

    def __init__(
        self, actor: Actor, name: str, *, seed: int = 0, time_s: float = 0.0, epoch_s: float = 1_000_000.0
    ) -> None:
        self.name = name
        self.sent: list[Sent] = []
        self.full: set[str] = set()
        self.gone: set[str] = set()
        self._actor = actor
        self.time_s = time_s
        """Monotonic seconds; whoever sets it lets time pass without firing a timer."""
        self.timers: list[ActorTimer] = []
        """All that were set, in order."""
        self._epoch_s = epoch_s
        self._random = random.Random(seed)
        self._timers = TimerQueue()
        actor.context = self
        actor.started()

    def deliver(self, message: Any) -> None:
        """Let the actor handle a message, and go on from a failure where it can, as its cell does."""
        try:
            self._actor.receive(message)
        except Exception as error:
            if not self._actor.spares(message, error):
                raise

    def now(self) -> float:
        return self.time_s

    def wall(self) -> float:
        return self._epoch_s + self.time_s

    @property
    def random(self) -> random.Random:
        return self._random

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        if to in self.gone or (to in self.full and lane is Lane.DATA):
            return False
        self.sent.append(Sent(to, message, lane))
        return True

    def after(self, delay_s: float, message: Any) -> ActorTimer:
        timer = self._timers.add(self.time_s + delay_s, message)
        self.timers.append(timer)
        return timer

    def take(self, to: str) -> list[Any]:
        """The messages sent to `to` since the last call, oldest first."""
        taken = [sent.message for sent in self.sent if sent.to == to]
        self.sent = [sent for sent in self.sent if sent.to != to]
        return taken

    def take_sent(self) -> list[Sent]:
        """What was sent since the last call, oldest first."""
        taken, self.sent = self.sent, []
        return taken

    def advance(self, seconds: float) -> None:
        """Move the clock; each timer that comes due is received at its own time, then the actor settles."""
        until = self.time_s + seconds
        while (due := self._timers.next_due()) is not None and due <= until:
            self.time_s = max(self.time_s, due)
            timer = self._timers.pop_due(due)
            if timer is not None and timer.claim():
                self.deliver(timer.message)
                self._actor.settled()
        self.time_s = until
