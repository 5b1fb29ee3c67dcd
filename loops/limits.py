"""What the next step is planned within, and when it may be launched."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.lifecycle.limits import SETTABLE, Limits, refusals
from pawl.lifecycle.snapshot import Plain
from pawl.lifecycle.step_times import StepTimes


class LimitKeeper:
    """The limits of one loop. Planner, admission and queue read `now` at every step."""

    def __init__(self, limits: Limits) -> None:
        self.now = limits
        self.times = StepTimes()
        """What steps have taken."""
        self.ready_at = 0.0
        """When something last happened after which a step may be launched: a launch, a result, an arrival at rest."""
        self._at_start = msgspec.structs.replace(limits)

    @property
    def due_at(self) -> float:
        """When the next step may be launched, if there is something to do."""
        return self.ready_at + self.now.step_delay_s

    def in_force(self) -> dict[str, Any]:
        """Those that are set together, by name."""
        return {name: getattr(self.now, name) for name in SETTABLE}

    def set(self, given: dict[str, Any], page_size: int) -> str:
        """Set all of these, or none; what is wrong with them, if anything."""
        wrong = "; ".join(refusals(given, self._at_start, page_size))
        if not wrong:
            for name, value in given.items():
                setattr(self.now, name, value)
        return wrong

    # ---- checkpoints ----

    def snapshot(self) -> Plain:
        """All that decides."""
        return {
            "now": msgspec.to_builtins(self.now),
            "ready_at": self.ready_at,
            "times": msgspec.to_builtins(self.times),
        }

    def restore(self, plain: Plain) -> None:
        """Go on from a snapshot."""
        for name, value in plain["now"].items():
            setattr(self.now, name, value)
        self.ready_at = plain["ready_at"]
        self.times = msgspec.convert(plain["times"], StepTimes)
