"""Whether a part of the engine's memory is resident."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum
from typing import TypeAlias

from pawl.lifecycle.machines.base import Machine


class MemoryTag(StrEnum):
    """Parts of the engine's memory that are released by name."""

    KV_CACHE = "kv_cache"
    """The pages on the device. What tiers below it keep stays."""
    WEIGHTS = "weights"
    CUDA_GRAPH = "cuda_graph"
    """Recorded steps; on a device without any it has no bytes."""


def in_order(tags: Collection[MemoryTag]) -> tuple[MemoryTag, ...]:
    """These, in the order in which all are told of them."""
    return tuple(tag for tag in MemoryTag if tag in tags)


class Residency(StrEnum):
    """Where a part of the memory is."""

    RESIDENT = "resident"
    """The worker has it: steps can be computed."""
    RELEASED = "released"
    """It is given back to the system, or is being. No step is planned; requests wait."""


class ResidencyEvent(StrEnum):
    """What moves it."""

    RELEASE = "release"
    RESUME = "resume"
    REPLACE = "replace"


_s, _e = Residency, ResidencyEvent
ResidencyMove: TypeAlias = tuple[Residency, ResidencyEvent, Residency, str]
_MOVES: tuple[ResidencyMove, ...] = (
    (_s.RESIDENT, _e.RELEASE, _s.RELEASED, "somebody wants it released, and nobody is at work; the worker is told"),
    (_s.RELEASED, _e.RESUME, _s.RESIDENT, "the worker has it again, or could not release it"),
    (_s.RELEASED, _e.REPLACE, _s.RESIDENT, "of the weights: an update has brought others"),
)

RESIDENCY: Machine[Residency, ResidencyEvent] = Machine(
    "memory",
    "Whether a part of the memory is resident: each of `kv_cache`, `weights` and `cuda_graph` by itself. It counts as "
    "released from the order on, and as resident only when the worker has said so, so a failure on the way leaves it "
    "released, and resuming can be tried again.",
    _s.RESIDENT,
    _MOVES,
)
