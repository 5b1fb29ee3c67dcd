"""Adapters: scheduler, stager, and gateway.

    scheduler ── ReadAdapter ──► stager ── AdapterLoaded, AdapterFailed ──► scheduler ── AdaptersNamed ──► gateway
    scheduler ── EmptyAdapterSlot ──► stager

The answers are orders (`pawl.loops.orders.adapters`): what follows from them is recorded. The stager does what it is
told in order, so a slot that is emptied may be given to another at once.
"""

from __future__ import annotations

import msgspec

from pawl.loops.adapter import Named

UNREAD = "the server failed to read the adapter"


class ReadAdapter(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> stager: read an adapter into a slot with which nobody is computed. Answered once."""

    ticket: int
    slot: int
    source: str


class EmptyAdapterSlot(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> stager: drop what is in a slot."""

    slot: int


class AdaptersNamed(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> gateway: requests may name these from now on, and no others."""

    adapters: tuple[Named, ...]
    """Those that are listed."""
    replica: int = 0
    resting: tuple[Named, ...] = ()
