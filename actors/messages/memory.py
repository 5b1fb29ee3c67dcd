"""Memory that is released and resumed: scheduler, worker and gateway.

    scheduler ── MoveMemory ──► worker ── MoveEnded ──► scheduler ── MemoryReleased ──► gateway

The worker's answer is an order (`pawl.loops.orders.memory`): what follows from it is recorded.
"""

from __future__ import annotations

import msgspec

from pawl.lifecycle.machines.memory import MemoryTag, ResidencyEvent

UNMOVED = "the worker failed to do it"


class MoveMemory(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> worker, while no step is in flight: release these, or resume them. Answered once; what is so
    already stays so."""

    ticket: int
    event: ResidencyEvent
    tags: tuple[MemoryTag, ...]


class MemoryReleased(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> gateway: these are released from now on, and nothing else."""

    tags: tuple[MemoryTag, ...]
    replica: int = 0
