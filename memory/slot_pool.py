"""Request slots: rows of the page table that a worker keeps, each owned by at most one running request."""

from __future__ import annotations

import numpy as np

from pawl.memory.arrays import Int32s
from pawl.memory.digest import DEFERRED
from pawl.memory.transaction import Ledger
from pawl.memory.violation import MemoryViolation


class SlotPool:
    """`total` slots. A slot given back while a step is in flight is reused only after that step is resolved."""

    __slots__ = ("_digest", "_free", "_keys", "_ledger", "deferred", "in_use", "total")

    def __init__(self, total: int, ledger: Ledger) -> None:
        if total < 1:
            raise ValueError(f"a server needs at least one slot, not {total}")
        self._ledger = ledger
        self._digest = ledger.digest
        self._keys: list[int] = ledger.digest.keys(total).tolist()
        self._free: list[int] = list(range(total - 1, -1, -1))
        self.total = total
        self.in_use = np.zeros(total, np.bool_)
        self.deferred = 0

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def next(self) -> int | None:
        """The slot that is taken next; None: none is free."""
        return self._free[-1] if self._free else None

    def take(self) -> None:
        """The next slot is in use. The caller logs the undo, `untake`, with that of what the slot is taken for."""
        slot = self._free.pop()
        self.in_use[slot] = True
        self._digest.value += self._keys[slot]

    def untake(self, slot: int) -> None:
        """Take back a `take`; the slot is free at once."""
        self.in_use[slot] = False
        self._digest.value -= self._keys[slot]
        self._free.append(slot)

    def release(self, slot: int, fence: int) -> None:
        """Give the slot back; free once step `fence` is resolved."""
        if not self.in_use[slot]:
            raise MemoryViolation("a slot is released once", slot=slot)
        self.in_use[slot] = False
        self._digest.value += (DEFERRED - 1) * self._keys[slot]
        # Counted last, as pages are (page_pool.py).
        self._ledger.after(fence, self._undefer, slot)
        self.deferred += 1

    def _undefer(self, slot: int) -> None:
        self.deferred -= 1
        self._digest.value -= DEFERRED * self._keys[slot]
        self._free.append(slot)

    def check(self) -> None:
        """Conservation: every slot is free, in use or deferred."""
        used = int(np.count_nonzero(self.in_use))
        if len(self._free) + used + self.deferred != self.total:
            raise MemoryViolation(
                "free + used + deferred = total slots", free=len(self._free), used=used, deferred=self.deferred
            )

    def recompute(self) -> int:
        """What the slots add to the digest, O(total)."""
        used: list[int] = self.used.tolist()
        deferred = set(range(self.total)) - set(self._free) - set(used)
        return sum(self._keys[slot] for slot in used) + DEFERRED * sum(self._keys[slot] for slot in deferred)

    @property
    def used(self) -> Int32s:
        """Slots in use, int32 [n]."""
        return np.flatnonzero(self.in_use).astype(np.int32)
