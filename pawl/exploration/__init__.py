"""Exploration as `pawl explore`, the pytest plugin and the contract share it. Nothing heavy is imported here."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pawl.testing.exploring import Outcome

ANY = "any"
"""Of a policy, of a cache: all take turns."""
CELLS = {
    "overlap-mixed": ("overlap", True),
    "overlap": ("overlap", False),
    "pipeline-mixed": ("pipeline", True),
    "pipeline": ("pipeline", False),
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
    drawn: Counter[str] = Counter()  # noqa: RUF012 - never changed
    """Feature -> schedules of workloads that have it."""
    reached: Counter[str] = Counter()  # noqa: RUF012 - never changed
    """Event -> runs, second ones included, in which it happened."""

    @classmethod
    def of(cls, outcome: Outcome) -> Totals:
        """Of one workload."""
        result = outcome.result
        drawn = Counter(dict.fromkeys(outcome.features, result.schedules))
        return cls(1, result.schedules, result.deliveries, result.confirmed, drawn, outcome.reached)

    @classmethod
    def told(cls, fields: dict[str, Any]) -> Totals:
        """What another process said, in JSON."""
        return cls(**fields | {name: Counter(fields[name]) for name in ("drawn", "reached")})

    def plus(self, other: Totals) -> Totals:
        """Both together."""
        return Totals(
            self.workloads + other.workloads,
            self.schedules + other.schedules,
            self.deliveries + other.deliveries,
            self.confirmed + other.confirmed,
            self.drawn + other.drawn,
            self.reached + other.reached,
        )
