"""KV pages: who owns which, counted by class, moved only by these functions.

A page is in exactly one class. The arrows are the only ways to change it:

    free ──take──► owned ──adopt──► cached        owned: referred to by rows only
      ▲              │                 │          cached: the prefix cache refers to it (rows may as well)
      │            release           evict        deferred: given back, a launched step may still touch it
      ├──(fence)── deferred ◄──────────┤          quarantined: reserved for a writer outside the steps
      └─reserve──► quarantined ──publish──► cached, or ──withdraw──► free, once the writer cannot write any more

`refcount[p]` is the number of referrers of page p: rows, and 1 for the cache. `generation[p]` rises whenever the page
is given back, so a stale handle is told from a live one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pawl.memory import moves
from pawl.memory.arrays import ONE, Int32s, lowest
from pawl.memory.digest import AGED, CACHED, DEFERRED, RESERVED, keys, signed, total
from pawl.memory.moves import Moves
from pawl.memory.transaction import Ledger, Transaction
from pawl.memory.violation import MemoryViolation

_AGED = signed(AGED)
# Whether a bool array has a 0 or a 1 is asked of its bytes: a few pages are searched many times quicker so.


class Reservation(NamedTuple):
    """Pages in quarantine: handles for a writer that works outside the steps. Stale once the pages have moved on."""

    pages: Int32s
    generations: Int32s
    """Generation of each page when it was reserved."""


class PagePool:
    """A fixed number of pages of `page_size` tokens each."""

    __slots__ = (
        "_digest",
        "_free_stack",
        "_keys",
        "_ledger",
        "_stream",
        "cached",
        "deferred",
        "free",
        "generation",
        "in_cache",
        "moves",
        "owned",
        "page_size",
        "quarantined",
        "refcount",
        "reserved",
        "total",
    )

    def __init__(self, total: int, page_size: int, ledger: Ledger, moves: Moves = moves) -> None:
        if total < 1 or page_size < 1:
            raise ValueError(f"a pool needs pages: total={total}, page_size={page_size}")
        self._ledger = ledger
        self.moves = moves
        self._digest = ledger.digest
        self._stream = ledger.digest.stream()
        self._keys = keys(self._stream, total)
        """What one referrer of each page adds to the digest; another number for every generation."""
        self.total = total
        self.page_size = page_size
        # Popped from the end, so the lowest page goes out first: traces of small runs stay readable.
        self._free_stack: Int32s = np.arange(total - 1, -1, -1, dtype=np.int32)
        self.refcount: Int32s = np.zeros(total, np.int32)
        self.generation: Int32s = np.zeros(total, np.int32)
        self.in_cache = np.zeros(total, np.bool_)
        self.reserved = np.zeros(total, np.bool_)
        self.free = total
        self.owned = 0
        self.cached = 0
        self.deferred = 0
        self.quarantined = 0

    # ---- undoable, within a step ----

    def take(self, transaction: Transaction, count: int) -> Int32s | None:
        """`count` free pages with one referrer each, int32 [count]; None (and no change) when there are not so many."""
        if count > self.free:
            return None
        self.free -= count
        pages = self._free_stack[self.free : self.free + count][::-1].copy()
        with transaction.change(self._untake, pages):
            weight = self.moves.take(pages, self.refcount, self.in_cache, self._keys)
            self.owned += count
            self._digest.value += weight
        return pages

    def share(self, pages: Int32s) -> None:
        """One more row refers to these cached pages. The caller logs the undo, `unshare`, with the row's own."""
        weight = self.moves.share(pages, self.refcount, self.in_cache, self._keys)
        if weight is None:
            raise MemoryViolation("only cached pages are shared", pages=pages[~self.in_cache[pages]])
        self._digest.value += weight

    def _untake(self, pages: Int32s) -> None:
        # A request that left while its step was in flight has given its pages back already: they wait at the fence,
        # one generation older.
        stayed = self.refcount[pages] > 0
        if not stayed.all():
            self._digest.undoing -= total(self._keys.take(pages[~stayed]) - _AGED)
            pages = pages[stayed]
        if (self.refcount[pages] != 1).any() or self.in_cache[pages].any():
            raise MemoryViolation("a page taken by an aborted step has one referrer", pages=pages)
        self._digest.value -= total(self._keys.take(pages))
        self.refcount[pages] = 0
        self._age(pages)
        self.owned -= len(pages)
        self._push(pages[::-1])

    def unshare(self, pages: Int32s) -> None:
        """Take back a `share`; the pages stay cached."""
        if (self.refcount[pages] < 2).any() or not self.in_cache[pages].all():
            raise MemoryViolation("only a shared page is unshared", pages=pages)
        self.refcount[pages] -= 1
        self._digest.value -= total(self._keys.take(pages))

    # ---- final, outside the undo log ----

    def release(self, pages: Int32s, fence: int) -> None:
        """A row lets go of its pages. Those without another referrer are free once step `fence` is resolved."""
        index = pages.astype(np.intp)
        left = self.refcount[index] - ONE
        if len(left) and lowest(left) < 0:
            raise MemoryViolation("refcount never falls below zero", pages=pages[left < 0])
        self.refcount[index] = left
        self._digest.value -= total(self._keys[index])
        gone = pages[left == 0]
        if gone.size:
            self.owned -= len(gone)
            self._give_back(gone, fence)

    def adopt(self, pages: Int32s) -> None:
        """The prefix cache becomes one more referrer of these owned pages."""
        weight = self.moves.adopt(pages, self.refcount, self.in_cache, self._keys)
        if weight is None:
            raise MemoryViolation("the cache adopts owned pages, once", pages=pages)
        self._digest.value += (1 + CACHED) * weight
        self.owned -= len(pages)
        self.cached += len(pages)

    def evict(self, pages: Int32s, fence: int) -> None:
        """The prefix cache gives pages back that no row refers to."""
        index = pages.astype(np.intp)
        if 0 in self.in_cache[index].tobytes() or 1 in (self.refcount[index] != ONE).tobytes():
            raise MemoryViolation("only cached pages without another referrer are evicted", pages=pages)
        self.refcount[index] = 0
        self.in_cache[index] = False
        self._digest.value -= (1 + CACHED) * total(self._keys[index])
        self.cached -= len(index)
        self._give_back(pages, fence)

    # ---- two-phase: pages that somebody outside the steps writes ----

    def reserve(self, count: int) -> Reservation | None:
        """`count` free pages into quarantine; None (and no change) when there are not so many."""
        if count > self.free:
            return None
        self.free -= count
        pages = self._free_stack[self.free : self.free + count][::-1].copy()
        self.reserved[pages] = True
        self.quarantined += count
        self._digest.value += RESERVED * total(self._keys.take(pages))
        return Reservation(pages, self.generation[pages])

    def follow(self, before: PagePool, written: Sequence[Reservation]) -> None:
        """Take the place of `before`, while all pages are free. What is still `written` by somebody outside the steps
        stays in quarantine, and its handles mean the same pages."""
        self.generation[:] = before.generation
        self._keys += before.generation * _AGED
        for reservation in written:
            self.reserved[reservation.pages] = True
        pages = np.flatnonzero(self.reserved).astype(np.int32)
        free = self._free_stack  # all that there are
        self.free -= len(pages)
        self._free_stack[: self.free] = free[~self.reserved[free]]
        self.quarantined = len(pages)
        self._digest.value += RESERVED * total(self._keys.take(pages))

    def publish(self, reservation: Reservation) -> None:
        """The pages are written: the prefix cache refers to them now."""
        self._leave_quarantine(reservation)
        self.refcount[reservation.pages] = 1
        self.in_cache[reservation.pages] = True
        self.cached += len(reservation.pages)
        self._digest.value += (1 + CACHED) * total(self._keys.take(reservation.pages))

    def withdraw(self, reservation: Reservation) -> None:
        """The pages are not wanted, and their writer is known to write no more: they are free."""
        self._leave_quarantine(reservation)
        self._age(reservation.pages)
        self._push(reservation.pages[::-1])

    def check_handle(self, reservation: Reservation) -> None:
        """Raise MemoryViolation for a reservation whose pages have moved on."""
        pages = reservation.pages
        stale = (self.generation[pages] != reservation.generations) | ~self.reserved[pages]
        if stale.any():
            raise MemoryViolation("handle.generation = generation(page)", pages=pages[stale])

    def _leave_quarantine(self, reservation: Reservation) -> None:
        self.check_handle(reservation)
        pages = reservation.pages
        self.reserved[pages] = False
        self.quarantined -= len(pages)
        self._digest.value -= RESERVED * total(self._keys.take(pages))

    def _give_back(self, pages: Int32s, fence: int) -> None:
        self._age(pages)
        waits = DEFERRED * total(self._keys.take(pages)) if fence > self._ledger.resolved else 0
        self._digest.value += waits
        # Counted last: where this fails half-way the counts do not come to all pages, and planning is not gone on with.
        self._ledger.after(fence, self._undefer, pages, waits)
        self.deferred += len(pages)

    def _undefer(self, pages: Int32s, waited: int) -> None:
        self.deferred -= len(pages)
        self._digest.value -= waited
        self._push(pages)

    def _age(self, pages: Int32s) -> None:
        """Handles of these pages are stale from now on. Nobody refers to them."""
        index = pages.astype(np.intp)
        self.generation[index] += 1
        self._keys[index] += _AGED

    def _push(self, pages: Int32s) -> None:
        count = len(pages)
        self._free_stack[self.free : self.free + count] = pages
        self.free += count

    # ---- checks ----

    def check(self) -> None:
        """Conservation, O(1): every page is in exactly one class."""
        total = self.free + self.owned + self.cached + self.deferred + self.quarantined
        if total != self.total or min(self.free, self.owned, self.cached, self.deferred, self.quarantined) < 0:
            raise MemoryViolation("free + owned + cached + deferred + quarantined = total", **self.counters())

    def counters(self) -> dict[str, int]:
        """Pages by class."""
        return {
            "total": self.total,
            "free": self.free,
            "owned": self.owned,
            "cached": self.cached,
            "deferred": self.deferred,
            "quarantined": self.quarantined,
        }

    @property
    def free_pages(self) -> Int32s:
        """The free pages, int32 [free]; a view."""
        return self._free_stack[: self.free]

    def check_all(self) -> None:
        """Every property of single pages, O(total): for tests and the idle self-check."""
        self.check()
        free = self.free_pages
        is_free = np.zeros(self.total, np.bool_)
        is_free[free] = True
        if np.count_nonzero(is_free) != len(free):
            raise MemoryViolation("the free stack has no duplicate")
        if (self.refcount[free] != 0).any():
            raise MemoryViolation("no page is both free and referenced", pages=free[self.refcount[free] != 0])
        if (self.refcount < 0).any():
            raise MemoryViolation("refcount never falls below zero")
        referenced = self.refcount > 0
        if int(referenced.sum()) != self.owned + self.cached or int(self.in_cache.sum()) != self.cached:
            raise MemoryViolation("counters equal the pages' classes", **self.counters())
        if (self.in_cache & ~referenced).any():
            raise MemoryViolation("a cached page is referenced")
        if int(self.reserved.sum()) != self.quarantined or (self.reserved & referenced).any():
            raise MemoryViolation("a page in quarantine has no other use", **self.counters())
        if self.reserved[free].any():
            raise MemoryViolation("no page is both free and reserved", pages=free[self.reserved[free]])

    def recompute(self) -> int:
        """What the pages add to the digest, O(total)."""
        added = keys(self._stream, self.total) + self.generation * _AGED
        deferred = (self.refcount == 0) & ~self.reserved
        deferred[self.free_pages] = False
        value = int(added.dot(self.refcount)) + CACHED * total(added[self.in_cache])
        return value + RESERVED * total(added[self.reserved]) + DEFERRED * total(added[deferred])


def consecutive(first: Int32s, count: Int32s) -> Int32s:
    """first[i], first[i]+1, … count[i] times for each i, concatenated."""
    ends = np.cumsum(count, dtype=np.int32)
    return np.arange(ends[-1], dtype=np.int32) + np.repeat(first - ends + count, count)
