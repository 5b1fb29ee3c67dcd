"""The properties that need no inside: what any scheduler of continuous batching must keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pawl.lifecycle.properties.base import Property
from pawl.lifecycle.properties.conservation import Conservation
from pawl.lifecycle.properties.ending import Incarnation, SilenceAfterAbort, StreamEqualsResult
from pawl.lifecycle.properties.legal_lifecycle import LegalLifecycle
from pawl.lifecycle.properties.outputs import (
    BatchIndependence,
    CacheHitEquivalence,
    Equivalence,
    Oracle,
    RetractionTransparency,
    ScheduleEquivalence,
    StopSemantics,
)
from pawl.lifecycle.properties.stream_positions import StreamPositions
from pawl.lifecycle.properties.time_order import TimeOrder


class PositionsOfAnyChunks(StreamPositions):
    """As `stream_positions`, for schedulers whose chunks of a prompt end anywhere in a page."""

    whole_pages: ClassVar[bool] = False


EQUIVALENCES: tuple[type[Equivalence], ...] = (
    ScheduleEquivalence,
    RetractionTransparency,
    CacheHitEquivalence,
    BatchIndependence,
)
OTHERS: tuple[type[Property], ...] = (
    Conservation,
    LegalLifecycle,
    Incarnation,
    SilenceAfterAbort,
    StreamEqualsResult,
    StopSemantics,
    PositionsOfAnyChunks,
    TimeOrder,
)


def outside_properties(expected: Oracle | None = None) -> Sequence[Property]:
    """New ones. `expected`: the tokens that each request must get, where somebody knows."""
    return [*(make() for make in OTHERS), *(make(expected) for make in EQUIVALENCES)]


NAMES = tuple(sorted({each.name for each in (*OTHERS, *EQUIVALENCES)}))
"""Names of these. What they judge of pages are the ids that steps name, and counts where they are told; what a page
holds, who holds it in a cache, and what decided are inside."""
