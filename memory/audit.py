"""Every law of a whole memory: the counters after every step, everything else at leisure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from memory.digest import MASK
from memory.pages import MemoryViolation

if TYPE_CHECKING:
    from memory.pool import Memory


def check_memory(memory: Memory) -> None:
    """Raise MemoryViolation at the first law that does not hold."""
    memory.check()
    memory.pages.invariants()
    memory.slots.check()
    memory.cache.invariants()
    memory.escrow.invariants()
    used = memory.slots.used
    length, count = memory.length[used], memory.num_pages[used]
    if (length > count * memory.page_size).any() or (length <= (count - 1) * memory.page_size).any():
        raise MemoryViolation("pages cover the length, and no page is spare", slots=used)
    referrers = np.zeros(memory.pages.total, np.int32)
    for slot in used:
        np.add.at(referrers, memory.page_table[slot, : memory.num_pages[slot]], 1)
    referrers += memory.pages.in_cache
    if (referrers != memory.pages.refcount).any():
        wrong = np.flatnonzero(referrers != memory.pages.refcount)
        raise MemoryViolation("refcount(page) = number of its referrers", pages=wrong)
    idle = np.setdiff1d(np.arange(memory.slots.total), used)
    if (
        memory.num_pages[idle].any()
        or memory.escrow.promised[idle].any()
        or any(memory.holds[slot] is not None for slot in idle)
    ):
        raise MemoryViolation("a slot that is not in use owns nothing")
    if memory.windows is not None:
        rows = {int(slot): memory.page_table[slot, : memory.num_pages[slot]] for slot in used}
        memory.windows.invariants(memory.pages, rows)
    if recompute(memory) != memory.digest():
        raise MemoryViolation("the digest is the sum over all facts", kept=memory.digest(), sum=recompute(memory))


def check_counters(memory: Memory) -> None:
    """What must hold after every step; O(1). Raises MemoryViolation."""
    memory.pages.check()
    if memory.windows is not None:
        memory.windows.check()
    if memory.pages.cached != memory.cache.evictable + memory.cache.held:
        raise MemoryViolation(
            "cached = evictable + held",
            cached=memory.pages.cached,
            evictable=memory.cache.evictable,
            held=memory.cache.held,
        )
    if memory.escrow.total > memory.obtainable + memory.pages.deferred:
        raise MemoryViolation(
            "promises <= free + evictable (+ deferred, while steps are in flight)",
            promised=memory.escrow.total,
            evictable=memory.cache.evictable,
            **memory.pages.counters(),
        )
    digest = memory.ledger.digest
    unrestored, digest.unrestored = digest.unrestored, None
    if unrestored is not None:
        raise MemoryViolation("rollback restores the state digest", **unrestored._asdict())


def recompute(memory: Memory) -> int:
    """The digest, from the facts themselves; O(size)."""
    value = memory.pages.recompute() + memory.slots.recompute() + memory.escrow.recompute()
    value += memory.rows.recompute(memory.slots.used)
    if memory.windows is not None:
        value += memory.windows.recompute()
    return value & MASK
