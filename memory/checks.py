"""Every property of a whole memory, checked: the counters after every step, everything else at leisure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pawl.memory.digest import MASK
from pawl.memory.violation import MemoryViolation

if TYPE_CHECKING:
    from pawl.memory.memory import Memory


def check_memory(memory: Memory) -> None:
    """Raise MemoryViolation at the first property that does not hold."""
    memory.check()
    memory.pages.check_all()
    memory.slots.check()
    memory.cache.check_all()
    memory.escrow.check_all()
    check_lengths(memory)
    check_referrers(memory)
    check_idle_slots(memory)
    check_windows(memory)
    check_digest(memory)


def check_lengths(memory: Memory) -> None:
    """Rows have as many pages as they need. Raises MemoryViolation."""
    used = memory.slots.used
    length, count = memory.page_table.length[used], memory.page_table.num_pages[used]
    if (length > count * memory.page_size).any() or (length <= (count - 1) * memory.page_size).any():
        raise MemoryViolation("pages cover the length, and no page is spare", slots=used)


def check_referrers(memory: Memory) -> None:
    """Who refers to a page is counted. Raises MemoryViolation."""
    referrers = np.zeros(memory.pages.total, np.int32)
    for slot in memory.slots.used:
        np.add.at(referrers, memory.page_table.row(slot), 1)
    referrers += memory.pages.in_cache
    if (referrers != memory.pages.refcount).any():
        wrong = np.flatnonzero(referrers != memory.pages.refcount)
        raise MemoryViolation("refcount(page) = number of its referrers", pages=wrong)


def check_idle_slots(memory: Memory) -> None:
    """Nothing is left where nobody is. Raises MemoryViolation."""
    idle = np.setdiff1d(np.arange(memory.slots.total), memory.slots.used)
    if (
        memory.page_table.num_pages[idle].any()
        or memory.escrow.promised[idle].any()
        or any(memory.page_table.holds[slot] is not None for slot in idle)
    ):
        raise MemoryViolation("a slot that is not in use owns nothing")


def check_windows(memory: Memory) -> None:
    """Every property of the second pool, where there is one. Raises MemoryViolation."""
    memory.windows.check_all(memory.pages, {slot: memory.page_table.row(slot) for slot in memory.slots.used.tolist()})


def check_digest(memory: Memory) -> None:
    """The digest, which is kept up to date, is what it would be if it were made anew. Raises MemoryViolation."""
    value = recompute(memory)
    if value != memory.digest():
        raise MemoryViolation("the digest is the sum over all facts", kept=memory.digest(), sum=value)


def check_counters(memory: Memory) -> None:
    """What must hold after every step; O(1). Raises MemoryViolation."""
    memory.pages.check()
    memory.windows.check()
    check_cached(memory)
    check_promises(memory)
    check_restored(memory)


def check_cached(memory: Memory) -> None:
    """What is cached is held or may leave. Raises MemoryViolation."""
    if memory.pages.cached != memory.cache.evictable + memory.cache.held:
        raise MemoryViolation(
            "cached = evictable + held",
            cached=memory.pages.cached,
            evictable=memory.cache.evictable,
            held=memory.cache.held,
        )


def check_promises(memory: Memory) -> None:
    """What was promised can be had. Raises MemoryViolation."""
    if memory.escrow.total > memory.obtainable + memory.pages.deferred:
        raise MemoryViolation(
            "promises <= free + evictable (+ deferred, while steps are in flight)",
            promised=memory.escrow.total,
            evictable=memory.cache.evictable,
            **memory.pages.counters(),
        )


def check_restored(memory: Memory) -> None:
    """The rollbacks since the last look have left nothing behind. Raises MemoryViolation."""
    digest = memory.ledger.digest
    unrestored, digest.unrestored = digest.unrestored, None
    if unrestored is not None:
        raise MemoryViolation("rollback restores the state digest", **unrestored._asdict())


def recompute(memory: Memory) -> int:
    """The digest, from the facts themselves; O(size)."""
    value = memory.pages.recompute() + memory.slots.recompute() + memory.escrow.recompute()
    value += memory.page_table.recompute(memory.slots.used) + memory.windows.recompute()
    return value & MASK
