"""The watchdog, in a thread of its own, tells when what should turn stands still.

The engine's loop can stand still in two ways: the scheduler handles no messages (stuck in a handler, or dead) and no
heartbeat comes, or heartbeats come but say that the oldest step in flight never comes back (a hung worker or device).
The gateway hears of either as soon as it is unusual; from `stall_s` on it is a stall, and `/health` turns 503.

The event loop of gateway and HTTP is watched by pulses, whose handling the watchdog can see. While that loop stands
nobody else can say so: the watchdog logs it, and once it turns again the gateway knows for how long it stood.

Deadlines of requests are the scheduler's own timers and none of the watchdog's business. Messages go one way, scheduler
to watchdog to gateway, so that an orderly stop loses none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from pawl.actors.messages.control import Heartbeat, Pulse, Stalled
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane

log = structlog.get_logger("pawl.watchdog")

OLD_STEP_S = 0.5
"""A step of this age is told to the gateway."""
SILENCE_S = 0.75
"""A scheduler that has been silent for this long, three heartbeats, is told to the gateway."""
INTERVAL_S = 0.25
"""Between two looks at how long the scheduler is silent: so the gateway knows of either within a second."""
PULSE_S = 0.25
"""Between two pulses."""
FREEZE_S = 0.5
"""An event loop that has not been seen to turn for this long stands still."""


class Tick(msgspec.Struct, frozen=True, tag=True):
    """The watchdog's own timer: is the scheduler heard?"""


class PulseDue(msgspec.Struct, frozen=True, tag=True):
    """The watchdog's own timer: does the event loop turn?"""


class Watchdog(Actor):
    """Looks each `interval_s` seconds how long the scheduler has been silent. `turned_at`: when the event loop was last
    seen to turn, monotonic seconds, None before the first time; callable from any thread."""

    accepts = Heartbeat

    def __init__(
        self,
        interval_s: float = INTERVAL_S,
        stall_s: float = 30.0,
        names: Names = NAMES,
        turned_at: Callable[[], float | None] | None = None,
    ) -> None:
        if not 0.0 < interval_s <= stall_s:
            raise ValueError(f"need 0 < interval_s <= stall_s, not {interval_s} and {stall_s}")
        self.interval_s = interval_s
        self.stall_s = stall_s
        self._names = names
        self._turned_at = turned_at
        self._heard_at = 0.0
        self._told = Stalled(0.0, replica=names.replica)
        self._still_s = 0.0
        """For how long the event loop was last seen to stand still; 0 while it turns."""

    def started(self) -> None:
        self._heard_at = self._began_at = self.context.now()
        self.context.after(self.interval_s, Tick())
        if self._turned_at is not None:
            self._pulse()

    def receive(self, message: Any) -> None:
        match message:
            case Heartbeat(oldest_launch_s):
                self._heard_at = self.context.now()
                age_s = oldest_launch_s or 0.0
                self._tell(age_s, oldest_step_s=age_s if age_s >= OLD_STEP_S else 0.0)
            case Tick():
                self.context.after(self.interval_s, message)
                silent_s = self.context.now() - self._heard_at
                if silent_s >= SILENCE_S:
                    self._tell(silent_s, self._told.oldest_step_s, silent_s)
            case PulseDue():
                self._pulse()

    # ---- the engine's loop ----

    def _tell(self, age_s: float, oldest_step_s: float = 0.0, silent_s: float = 0.0) -> None:
        """Tell the gateway: each time while the loop is slow (the age grows), and once when it is not any more."""
        replica = self._names.replica
        now = Stalled(age_s if age_s >= self.stall_s else 0.0, oldest_step_s, silent_s, replica)
        before, self._told = self._told, now
        if now == before == Stalled(0.0, replica=replica):
            return
        if now.seconds and not before.seconds:
            log.error("the loop does not move", seconds=round(now.seconds, 1))
        elif before.seconds and not now.seconds:
            log.info("the loop moves again")
        self.context.send(self._names.gateway, now, Lane.CONTROL)

    # ---- the event loop ----

    def _pulse(self) -> None:
        now = self.context.now()
        turned_at = self._turned_at() if self._turned_at is not None else None
        still_s = now - (self._began_at if turned_at is None else turned_at)
        frozen, before = still_s >= FREEZE_S, self._still_s
        self._still_s = still_s if frozen else 0.0
        if frozen and not before:
            log.error("the event loop stands still: nothing is read and nothing is sent", seconds=round(still_s, 2))
        elif before and not frozen:
            log.warning("the event loop turns again", seconds=round(before, 2))
        if not frozen:
            # The pulse that a frozen loop has not handled yet is enough: its lateness is the length of the freeze.
            self.context.send(self._names.gateway, Pulse(now), Lane.CONTROL)
        self.context.after(PULSE_S, PulseDue())
