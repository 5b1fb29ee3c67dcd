"""Pages promised to running requests: what each may still take before anybody new is let in.

A slot owns pages and is promised more, up to its next safe point. Promises are kept out of what may be given to others:
admission, and reservations for pages that come from a lower cache tier, see only what is not promised.

    free + evictable  =  promised (sum over slots)  +  unpromised

`promise` and `spend` belong to a step and are undone with it. `renew` is a decision of its own, made anew whenever
somebody waits or pages run short: it hands what there is to the slots in the order given, oldest request first.
"""

from __future__ import annotations

import numpy as np

from pawl.memory.arrays import Bools, Indices, Int32s
from pawl.memory.digest import Digest
from pawl.memory.violation import MemoryViolation


class Escrow:
    """`promised[slot]`: pages the slot does not own yet and may count on, int32 [num_slots]; `total`: their sum."""

    __slots__ = ("_digest", "_keys", "promised", "total")

    def __init__(self, num_slots: int, digest: Digest) -> None:
        self._digest = digest
        self._keys = digest.keys(num_slots)
        self.promised: Int32s = np.zeros(num_slots, np.int32)
        self.total = 0

    def promise(self, slot: int, count: int) -> None:
        """`count` more pages for a slot, fewer where it is negative. Taken back by `forget`."""
        self.promised[slot] += count
        self.total += count
        self._digest.value += self._keys.item(slot) * count

    def covered(self, slots: Indices, counts: Int32s) -> Int32s:
        """How many of the `counts` pages that each slot is about to take it has been promised, int32 [n]."""
        covered: Int32s = np.minimum(counts, self.promised[slots])
        return covered

    def spend(self, slots: Indices, counts: Int32s) -> None:
        """The slots take so many of their promised pages; each slot at most once. Undone by `restore`."""
        self.promised[slots] -= counts
        self.total -= int(counts.sum())
        self._digest.value -= self.fact(slots, counts)

    def restore(self, slots: Indices, counts: Int32s) -> None:
        """The step that spent these never happened."""
        self.promised[slots] += counts
        self.total += int(counts.sum())
        self._digest.value += self.fact(slots, counts)

    def fact(self, slots: Indices, counts: Int32s) -> int:
        """What so many promised pages add to the digest."""
        return int(self._keys.take(slots).dot(counts))

    def renew(self, slots: Indices, wants: Int32s, available: int) -> Int32s:
        """Promise each slot what it wants, the first ones first, as far as `available` pages go; int32 [n] granted.

        Replaces what these slots were promised before. Slots that are not named keep their promises, which are not
        part of `available`.
        """
        granted: Int32s = wants
        if int(wants.sum()) > available:
            before = np.cumsum(wants) - wants
            granted = np.clip(available - before, 0, wants).astype(np.int32)
        change = granted - self.promised[slots]
        self.total += int(change.sum())
        self._digest.value += self.fact(slots, change)
        self.promised[slots] = granted
        return granted

    def kept(self, slots: Indices, counts: Int32s, free: int) -> Bools:
        """Which slots can take their `counts` pages now: they are promised, and `free` pages, handed out to the first
        ones first, are enough; bool [n]."""
        kept: Bools = (counts <= self.promised[slots]) & ((np.cumsum(counts) <= free) | (counts == 0))
        return kept

    def forget(self, slot: int) -> None:
        """The slot's request leaves: nothing is promised to it any more."""
        count = int(self.promised[slot])
        if count:
            self.promise(slot, -count)

    def unpromise(self, slot: int) -> None:
        """`forget` for a slot whose admission is being undone: what it was promised is no change of its own."""
        self._digest.undoing += int(self._keys[slot]) * int(self.promised[slot])
        self.forget(slot)

    def check_all(self) -> None:
        """The total is the sum, and no promise is negative; O(slots)."""
        if int(self.promised.sum()) != self.total or (self.promised < 0).any():
            raise MemoryViolation("the total of promises is their sum", total=self.total, sum=int(self.promised.sum()))

    def recompute(self) -> int:
        """What the promises add to the digest, O(slots)."""
        return int(self._keys.dot(self.promised))
