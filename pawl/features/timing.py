"""Features of how long steps take, and of what is done about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pawl.features.row import Feature, Source


def _token_times(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    if not source.chance(0.3):
        return {}
    hitches = tuple(source.pick((0.0, 0.0, 0.3, 1.0)) for _ in range(source.within(0, 5)))
    return {"token_s": source.pick((0.02, 0.001, 0.1)), "hitches": hitches}


FEATURES: tuple[Feature, ...] = (
    Feature(
        "time of a token",
        ("token_s", "hitches"),
        _token_times,
        ("bounded_gaps", "bounded_progress", "time_order"),
    ),
    Feature(
        "bounded steps",
        ("max_step_s",),
        lambda source, values: {"max_step_s": source.pick((0.05, 0.001, 0.5))} if source.chance(0.5) else {},
        ("bounded_gaps", "work_conserving", "one_decision_log", "schedule_equivalence", "bounded_progress"),
        settings=("max_step_ms",),
        help="milliseconds of a step with prompts beside requests that decode, or 3/4 more than these take, if longer; "
        "up to 3 times more while others wait to begin (a server: 40; otherwise no bound)",
    ),
)
