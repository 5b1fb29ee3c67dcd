"""What becomes of experts that are to move, in words."""

from __future__ import annotations

from typing import Any

import structlog

from pawl.gpu.step_runner import PlacesExperts, PlannedMove, WeightsRefused
from pawl.loops.intake import Outcome

NOT_SHARED = "no experts can move: serve a model with experts with --ep 2 or more, and --enable-eplb"
BALANCED = "No other placement would help much."

log = structlog.get_logger("pawl.experts")


def laid_out(placing: PlacesExperts | None) -> PlannedMove | Outcome:
    """A better map, staged; or why there is none."""
    if placing is None:
        return Outcome(False, NOT_SHARED)
    try:
        planned = placing.stage()
    except WeightsRefused as refused:
        log.warning("experts stay where they are", reason=str(refused))
        return Outcome(False, str(refused))
    return Outcome(True, BALANCED, {"moved_experts": 0}) if planned is None else planned


def switched(placing: PlacesExperts | None, planned: PlannedMove) -> Outcome:
    """The outcome of what is done between two steps."""
    assert placing is not None, "it has planned the move"
    try:
        placing.switch(planned.ticket)
    except WeightsRefused as refused:
        log.warning("experts stay where they are", reason=str(refused))
        return Outcome(False, str(refused))
    facts: dict[str, Any] = {
        "moved_experts": planned.moved,
        "layers": planned.layers,
        "imbalance_before": round(planned.before, 3),
        "imbalance_after": round(planned.after, 3),
    }
    log.info("experts are elsewhere", **facts)
    return Outcome(True, f"{planned.moved} experts were moved.", facts)
