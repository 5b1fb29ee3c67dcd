"""What `pawl explore`, the pytest plugin and the contract share. Nothing heavy is imported here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pawl.actors.simulation.exploration import Result

CELLS = {
    "overlap-mixed": ("overlap", True),
    "overlap": ("overlap", False),
    "lockstep-mixed": ("lockstep", True),
    "lockstep": ("lockstep", False),
}
"""Every kind of loop: its pacing, and whether one step may hold prompts and outputs."""


class Totals(NamedTuple):
    """What was explored."""

    workloads: int = 0
    schedules: int = 0
    deliveries: int = 0
    """Messages handed to actors, timers included; those of second runs, replays and shrinking not."""
    confirmed: int = 0
    """Schedules run twice."""

    @classmethod
    def of(cls, result: Result) -> Totals:
        """Of one workload."""
        return cls(1, result.schedules, result.deliveries, result.confirmed)

    def plus(self, other: Totals) -> Totals:
        return Totals(*(a + b for a, b in zip(self, other, strict=True)))
