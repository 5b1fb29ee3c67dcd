"""The watchdog asks the scheduler whether its loop turns, and tells the gateway when it does not.

A loop can stand still in two ways: the scheduler does not answer (stuck in a handler, or dead), or it answers but its
oldest step in flight never comes back (a hung worker or device). Either, for `stall_s`, is a stall: `/health` then
says so. Deadlines of requests are the scheduler's own timers and none of the watchdog's business.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from pawl.actors.messages.control import Heartbeat, Progress, Stalled
from pawl.actors.runtime.actor import Actor, Lane

log = structlog.get_logger("pawl.watchdog")


class Tick(msgspec.Struct, frozen=True, tag=True):
    """The watchdog's own timer."""


class Watchdog(Actor):
    """One question each `interval_s` seconds, and never a second one before the first is answered."""

    accepts = Progress

    def __init__(
        self, interval_s: float = 1.0, stall_s: float = 30.0, scheduler: str = "scheduler", gateway: str = "gateway"
    ) -> None:
        if not 0.0 < interval_s <= stall_s:
            raise ValueError(f"need 0 < interval_s <= stall_s, not {interval_s} and {stall_s}")
        self.interval_s = interval_s
        self.stall_s = stall_s
        self._scheduler = scheduler
        self._gateway = gateway
        self._ticket = 0
        self._asked_at: float | None = None
        """When the question without an answer was asked; None: every question was answered."""
        self._stalled = False

    def started(self) -> None:
        self._ask()
        self.context.after(self.interval_s, Tick())

    def receive(self, message: Any) -> None:
        match message:
            case Progress():
                self._answered(message)
            case Tick():
                self.context.after(self.interval_s, message)
                self._look()

    def _ask(self) -> None:
        self._ticket += 1
        self._asked_at = self.context.now()
        # A scheduler that is gone refuses the question; the silence that follows is the stall.
        self.context.send(self._scheduler, Heartbeat(ticket=self._ticket), Lane.CONTROL)

    def _answered(self, progress: Progress) -> None:
        if progress.ticket != self._ticket:
            return
        self._asked_at = None
        age_s = progress.oldest_launch_s
        self._report(age_s if age_s is not None and age_s >= self.stall_s else 0.0)

    def _look(self) -> None:
        if self._asked_at is None:
            self._ask()
            return
        silent_s = self.context.now() - self._asked_at
        if silent_s >= self.stall_s:
            self._report(silent_s)

    def _report(self, seconds: float) -> None:
        """Tell the gateway: each time while the loop stands (the age grows), and once when it moves again."""
        if seconds == 0.0 and not self._stalled:
            return
        if (seconds > 0.0) is not self._stalled:
            self._stalled = seconds > 0.0
            if self._stalled:
                log.error("the loop does not move", seconds=round(seconds, 1))
            else:
                log.info("the loop moves again")
        self.context.send(self._gateway, Stalled(seconds=seconds), Lane.CONTROL)
