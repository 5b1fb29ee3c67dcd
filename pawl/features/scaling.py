"""Features of replicas that come and go while the server runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pawl.features.row import Feature, Source


def _scaling(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that prefill are as many as the settings say."""
    if values["replicas"] == 1 or values["prefillers"] or not source.chance(0.6):
        return {}
    return {
        "max_replicas": values["replicas"] + source.within(0, 2),
        "scale_at": source.pick((0, 1, 2)),
        "scale_up_s": source.pick((0.0, 0.01, 0.5)),
        "scale_down_s": source.pick((0.01, 0.05, 0.5)),
    }


FEATURES: tuple[Feature, ...] = (
    Feature(
        "scaling",
        ("max_replicas", "scale_at", "scale_up_s", "scale_down_s"),
        _scaling,
        ("scaling", "schedule_equivalence", "stream_equals_result", "legal_lifecycle"),
        settings=("max_dp", "scale_at", "scale_down_s"),
        help="replicas that there may be: they come and go with the load, or as one is told",
        present=lambda values: bool(values["max_replicas"]),
    ),
)
