"""Every law of a whole memory, and its digest. Not on the hot path: both cost what the memory is large."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

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


def digest(memory: Memory) -> int:
    """64 bits that change when any fact of memory does."""
    state = hashlib.blake2b(digest_size=8)
    used = memory.slots.used
    for part in (memory.pages.refcount, memory.pages.in_cache, used, memory.length[used]):
        state.update(part.tobytes())
    for slot in used:
        state.update(memory.page_table[slot, : memory.num_pages[slot]].tobytes())
    if memory.windows is not None:
        for part in (memory.windows.partner, memory.windows.start, memory.windows.pool.refcount):
            state.update(part.tobytes())
    return int.from_bytes(state.digest(), "little")
