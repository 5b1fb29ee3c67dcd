"""The watchdog listens for the scheduler's heartbeats, and tells the gateway when the loop does not turn.

A loop can stand still in two ways: the scheduler handles no messages (stuck in a handler, or dead) and no heartbeat
comes, or heartbeats come but say that the oldest step in flight never comes back (a hung worker or device). Either,
for `stall_s`, is a stall: `/health` then says so. Deadlines of requests are the scheduler's own timers and none of the
watchdog's business. Messages go one way, scheduler to watchdog to gateway, so that an orderly stop loses none.
"""

from __future__ import annotations

from typing import Any

import msgspec
import structlog

from pawl.actors.messages.control import Heartbeat, Stalled
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane

log = structlog.get_logger("pawl.watchdog")


class Tick(msgspec.Struct, frozen=True, tag=True):
    """The watchdog's own timer."""


class Watchdog(Actor):
    """Looks each `interval_s` seconds how long the scheduler has been silent."""

    accepts = Heartbeat

    def __init__(self, interval_s: float = 1.0, stall_s: float = 30.0, names: Names = NAMES) -> None:
        if not 0.0 < interval_s <= stall_s:
            raise ValueError(f"need 0 < interval_s <= stall_s, not {interval_s} and {stall_s}")
        self.interval_s = interval_s
        self.stall_s = stall_s
        self._names = names
        self._heard_at = 0.0
        self._stalled = False

    def started(self) -> None:
        self._heard_at = self.context.now()
        self.context.after(self.interval_s, Tick())

    def receive(self, message: Any) -> None:
        match message:
            case Heartbeat(oldest_launch_s):
                self._heard_at = self.context.now()
                age_s = oldest_launch_s or 0.0
                self._report(age_s if age_s >= self.stall_s else 0.0)
            case Tick():
                self.context.after(self.interval_s, message)
                silent_s = self.context.now() - self._heard_at
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
        self.context.send(self._names.gateway, Stalled(seconds=seconds), Lane.CONTROL)
