"""Features of how much goes between the device and the tiers below at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pawl.features.row import Feature, Source


def _few_at_a_time(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """A simulated server has fewer pages than the usual limits."""
    if not values["host_pages"] + values["storage_pages"] or not source.chance(0.6):
        return {}
    most = {"save_pages": 3, "max_saving_pages": 4, "max_fetch_pages": 4}
    return {name: source.within(1, number) for name, number in most.items()}


def _slow_tiers(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """So that a request that waits for pages from below goes on without them, or ends meanwhile."""
    if not values["host_pages"] + values["storage_pages"] or not source.chance(0.7):
        return {}
    return {"fetch_s": source.pick((0.05, 0.3)), "fetch_lease_s": source.pick((0.02, 0.1))}


FEATURES: tuple[Feature, ...] = (
    Feature(
        "few pages at a time",
        ("save_pages", "max_saving_pages", "max_fetch_pages"),
        _few_at_a_time,
        ("read_after_commit", "observability_conservation", "auxiliary_conservation"),
    ),
    Feature(
        "slow tiers",
        ("fetch_s", "fetch_lease_s"),
        _slow_tiers,
        ("auxiliary_conservation", "bounded_progress", "true_causes", "cache_as_stated"),
        settings=("fetch_lease_s",),
    ),
)
