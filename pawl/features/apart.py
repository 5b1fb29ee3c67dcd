"""Features of prefill and decode apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pawl.features.row import Feature, Source


def _prefillers(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """Pages travel in the tier below the device, and windowed layers have none there. None of them come and go."""
    below = values.get("host_pages") or values.get("storage_pages")
    if values.get("window") or values["max_replicas"] or not below or not source.chance(0.6):
        return {}
    return {"prefillers": source.within(1, 2), "prefill_lease_s": source.pick((0.5, 5.0))}


def _prefill_ranks(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    return {"prefill_ranks": 3 - values["ranks"]} if values["prefillers"] and source.chance(0.7) else {}


FEATURES: tuple[Feature, ...] = (
    Feature(
        "prefill replicas",
        ("prefillers", "prefill_lease_s", "prefill_pages"),
        _prefillers,
        ("schedule_equivalence", "stream_equals_result", "auxiliary_conservation", "bounded_progress"),
        settings=("disaggregate", "prefill_lease_s", "page_transport"),
        help="replicas that prefill for others that decode, and how many of each: 1p1d, 2p1d",
        present=lambda values: bool(values["prefillers"]),
    ),
    Feature(
        "other ranks to prefill",
        ("prefill_ranks",),
        _prefill_ranks,
        ("read_after_commit", "schedule_equivalence"),
        settings=("prefill_tp", "decode_tp"),
    ),
)
