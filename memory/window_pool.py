"""The second pool of hybrid models: window pages, which layers with a sliding window need only near the end of a row.

Rows and cache nodes name full pages. A full page may have a partner in the window pool, its window page, which holds
the keys and values of the same positions for the windowed layers; a full page without one is a tombstone.

    full pages of a row:   p4    p9    p2    p7    p1        start[slot] = 2: the row refers to the partners of its
    their partners:         ·     ·    w3    w0    w5        pages from there on, and to none before
                           tombstones  behind ─┘    └─ being written

A query at position q reads positions > q - window. Once a row is committed up to some place, nobody reads more than the
`behind` pages before the page of that place, and the row lets go of the partners before those. This counts from the
page's beginning and not from the place itself: so the next request can continue there, from the cache, in whole pages.

Referrers of a window page are rows and the prefix cache, counted as in the pool of full pages. A window page that only
the cache refers to may leave at any time, least recently used first; its full page stays and becomes a tombstone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from pawl.memory.arrays import Bools, Indices, Int32s
from pawl.memory.escrow import Escrow
from pawl.memory.page_pool import PagePool, consecutive
from pawl.memory.page_table import PageTable
from pawl.memory.partners import NO_PAGE, Partners
from pawl.memory.recency import PageOrder
from pawl.memory.transaction import Ledger, Transaction
from pawl.memory.violation import MemoryViolation
from pawl.memory.windows import Windows


class WindowPool(Windows):
    """Owner of every window page, for `num_slots` rows over a pool of `num_full` full pages.

    `window`: keys that a query sees, its own included; `chunk`: tokens of one row that a step computes at the most;
    `max_context`: tokens of one request. Raises ValueError when `num_pages` cannot hold what one request needs.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        num_pages: int,
        num_full: int,
        num_slots: int,
        page_size: int,
        window: int,
        chunk: int,
        max_context: int,
    ) -> None:
        if window < 1 or chunk < 1:
            raise ValueError(f"a window holds a token, and a step computes one: window={window}, chunk={chunk}")
        self.behind = -(-(window - 1) // page_size)
        self.most = min(self.behind + 1 + -(-chunk // page_size), -(-max_context // page_size), num_full)
        """Window pages that one row can make use of at the same time."""
        if num_pages < self.most:
            raise ValueError(
                f"{num_pages} window pages cannot hold one request: a window of {window} tokens and steps of {chunk} "
                f"need {self.most} pages of {page_size}"
            )
        self.ledger = ledger
        self.page_size = page_size
        self.pool = PagePool(num_pages, page_size, ledger)
        self.pools = (self.pool,)
        self.escrow = Escrow(num_slots, ledger.digest)
        self.partners = Partners(ledger.digest, num_full, num_pages)
        self.start: Int32s = np.zeros(num_slots, np.int32)
        """Index of the first page of each row whose partner it refers to."""
        self._fence = np.zeros(num_pages, np.int64)
        """Newest step that may still touch a page, as far as those who let go of it have said."""
        self._digest = ledger.digest
        self._start_keys = ledger.digest.keys(num_slots)
        self._present = np.zeros(num_slots, np.bool_)
        self._order = PageOrder(num_pages)

    # ---- within a step: undoable ----

    def join(self, slot: int, pages: Int32s) -> None:
        """A row begins with these full pages of the cache, int32 [n]: it reads on from their end.

        The caller logs the undo, `unjoin`, before.
        """
        first = max(len(pages) - self.behind, 0)
        self._share(self.partners.living(pages[first:]))
        self.start[slot] = first
        self._digest.value += int(self._start_keys[slot]) * first
        self._present[slot] = True

    def unjoin(self, slot: int, pages: Int32s) -> None:
        """Take back a `join`, of which this may be told whether or not it came to that."""
        if self._present[slot]:
            self._unshare(self.partners.living(pages[self.start[slot] :]))
            self.escrow.unpromise(slot)
            self._forget(slot)

    def take(
        self, transaction: Transaction, slots: Indices | Sequence[int], counts: Int32s | Sequence[int], pages: Int32s
    ) -> bool:
        """Partners for new full pages, `counts[i]` of them for `slots[i]`; evicts if need be."""
        slots, counts = np.asarray(slots, np.intp), np.asarray(counts, np.int32)
        covered = self.escrow.covered(slots, counts)
        uncovered = len(pages) - int(covered.sum())
        if (uncovered > 0 and uncovered > self.unpromised) or not self.make_room(len(pages)):
            return False
        taken = self.pool.take(transaction, len(pages))
        if taken is None:
            return False
        with transaction.change(self._untake, slots, covered, pages, taken):
            self.escrow.spend(slots, covered)
            self.partners.pair(pages, taken)
        return True

    def _untake(self, slots: Indices, covered: Int32s, pages: Int32s, taken: Int32s) -> None:
        # Rows that left while their step was in flight have given everything back already.
        stayed, parted = self._present[slots], self.partners.of[pages] != taken
        self.escrow.restore(slots[stayed], covered[stayed])
        self._digest.undoing += self.escrow.fact(slots[~stayed], covered[~stayed])
        self._digest.undoing -= self.partners.worth(pages[parted], taken[parted])
        self.partners.part(pages)

    # ---- final ----

    def slide(self, slots: Int32s, starts: Int32s, counts: Int32s, table: PageTable) -> None:
        """Rows are committed so many positions on from `starts`: they let go of the window pages that no later query
        reads.

        No step in flight reads them either: its queries come after what is committed.
        """
        present = self._present[slots]
        slots, start = slots[present], self.first_read((starts + counts)[present])
        moved = start > self.start[slots]
        if moved.any():
            slots, start = slots[moved], start[moved]
            before, self.start[slots] = self.start[slots], start
            count = start - before
            self._digest.value += int(self._start_keys.take(slots).dot(count))
            self._let_go(table.pages[np.repeat(slots, count), consecutive(before, count)], self.ledger.resolved)

    def leave(self, slot: int, pages: Int32s, fence: int) -> None:
        """The row ends; `pages` are all its full pages. Before those are given back themselves."""
        kept = pages[self.start[slot] :]
        # The first to leave the cache later on is the first here. Where a prompt's beginning is among them that is the
        # last page, as those before it still serve shorter prompts; elsewhere it is the one farthest behind.
        self._let_go(kept if self.start[slot] else kept[::-1], fence)
        self._forget(slot)

    def _forget(self, slot: int) -> None:
        self._present[slot] = False
        self._digest.value -= int(self._start_keys[slot]) * int(self.start[slot])
        self.start[slot] = 0
        self.escrow.forget(slot)

    def cut(self, pages: Int32s, fence: int) -> None:
        self._let_go(pages[::-1], fence)

    def adopt(self, pages: Int32s) -> None:
        """The cache adopts these full pages of a row: it becomes one more referrer of the partners they have."""
        self.pool.adopt(self.partners.existing(pages))

    def move(self, slot: int, indices: Int32s, ours: Int32s, theirs: Int32s, fence: int) -> None:
        """The row moves from its own full pages to those that the cache has for the same tokens, int32 [n] each.

        Where the cache's page is a tombstone, our window page becomes its partner, and it is alive again.
        """
        read = indices >= self.start[slot]
        ours, theirs = ours[read], theirs[read]
        alive = self.partners.of[theirs] != NO_PAGE
        self._share(self.partners.of[theirs[alive]])
        self._let_go(ours[alive], fence)
        revived = self.partners.of[ours[~alive]]
        self.partners.part(ours[~alive])
        self.partners.pair(theirs[~alive], revived)
        self.pool.adopt(revived)

    def dropped(self, pages: Int32s, fence: int) -> None:
        """These full pages have left the cache: so do their partners."""
        gone = self.partners.existing(pages)
        self.partners.part(pages)
        if len(gone):
            self._order.remove(gone)
            self.pool.evict(gone, max(fence, int(self._fence[gone].max())))

    def make_room(self, count: int) -> bool:
        """Take window pages from the cache until `count` are free, least recently used first; False when that many
        cannot be had without waiting or retracting. The full pages stay cached, as tombstones."""
        short = count - self.pool.free
        if short > 0 and self._order.count:
            gone = self._order.pop(short)
            self.partners.part(self.partners.full_page[gone])
            self.pool.evict(gone, int(self._fence[gone].max()))
        return self.pool.free >= count

    def window_pages(self, pages: Int32s) -> Int32s:
        """The partners of full pages, int32 [n], NO_PAGE for none."""
        window: Int32s = self.partners.of[pages]
        return window

    # ---- referrers ----

    def _share(self, window: Int32s) -> None:
        self.pool.share(window)
        self._order.remove(window)

    def _unshare(self, window: Int32s) -> None:
        """One referrer less for distinct pages of the cache."""
        self.pool.unshare(window)
        self._order.push(window[self.pool.refcount[window] == 1])

    def _let_go(self, pages: Int32s, fence: int) -> None:
        """Rows let go of the partners of these full pages. What the cache has stays; several rows may share it."""
        window = self.partners.living(pages)
        cached = self.pool.in_cache[window]
        self.pool.release(window[~cached], fence)
        self.partners.part(pages[~cached])
        if cached.any():
            window = window[cached]
            self._fence[window] = np.maximum(self._fence[window], fence)
            while len(window):
                once = np.sort(np.unique(window, return_index=True)[1])
                self._unshare(window[once])
                window = np.delete(window, once)

    # ---- promises ----

    @property
    def obtainable(self) -> int:
        """Window pages that are free or can be made so without touching a running request."""
        return self.pool.free + self._order.count

    @property
    def unpromised(self) -> int:
        """Window pages that are obtainable and not promised to a running request."""
        return self.pool.free + self._order.count - self.escrow.total

    def promise(self, slot: int, count: int, num_pages: int) -> bool:
        """Promise a row of `num_pages` pages what it needs of the window pool for `count` more; False if it cannot be
        had."""
        count = min(count, self.most - (num_pages - int(self.start[slot])))
        if count > self.unpromised:
            return False
        self.escrow.promise(slot, max(count, 0))
        return True

    def renew(self, slots: Indices, counts: Int32s, table: PageTable) -> int:
        """Promise rows what they need of the window pool for `counts` more pages, oldest row first; how many are short
        when all that is in flight is committed."""
        start = self.start[slots]
        wants: Int32s = np.clip(self.most - (table.num_pages[slots] - start), 0, counts)
        granted = self.escrow.renew(slots, wants, self.obtainable)
        returning = int(np.maximum(self.first_read(table.length[slots]) - start, 0).sum())
        return int(wants.sum()) - int(granted.sum()) - self.pool.deferred - returning

    def keep(self, able: Bools, slots: Indices, counts: Int32s) -> Bools:
        """Those of the `able` slots that can take partners for `counts` pages now, bool [n]; evicts if need be."""
        self.make_room(int(counts.sum()))
        kept: Bools = able & self.escrow.kept(slots, counts, self.pool.free)
        return kept

    def first_read(self, lengths: Int32s) -> Int32s:
        """Of rows committed up to these lengths: index of the first page that is still read, int32 [n]."""
        first: Int32s = np.maximum(lengths // self.page_size - self.behind, 0)
        return first

    # ---- checks ----

    def check(self) -> None:
        """What must hold after every step; O(1)."""
        self.pool.check()
        if self.escrow.total > self.obtainable + self.pool.deferred:
            raise MemoryViolation(
                "promises <= free + evictable (+ deferred) window pages",
                promised=self.escrow.total,
                evictable=self._order.count,
                **self.pool.counters(),
            )

    def recompute(self) -> int:
        """What the second pool adds to the digest, O(size)."""
        starts = int(self._start_keys.dot(self.start))
        return self.pool.recompute() + self.escrow.recompute() + self.partners.recompute() + starts

    def check_all(self, full: PagePool, rows: Mapping[int, Int32s]) -> None:
        """Every property, O(size); `rows`: the full pages of each slot in use."""
        self.check()
        self.pool.check_all()
        self.escrow.check_all()
        partnered = np.flatnonzero(self.partners.of != NO_PAGE).astype(np.int32)
        window = self.partners.of[partnered]
        in_use = np.flatnonzero(self.pool.refcount)
        if sorted(window) != in_use.tolist() or (self.partners.full_page[window] != partnered).any():
            raise MemoryViolation("a window page is the partner of one full page", pages=partnered)
        if (full.refcount[partnered] == 0).any() or (full.in_cache[partnered] != self.pool.in_cache[window]).any():
            raise MemoryViolation("a window page is owned and cached as its full page is", pages=partnered)
        referrers = self.pool.in_cache.astype(np.int32)
        for slot, pages in rows.items():
            read = self.partners.of[pages[self.start[slot] :]]
            if (read == NO_PAGE).any():
                raise MemoryViolation("a row refers to living window pages", slot=slot, start=int(self.start[slot]))
            np.add.at(referrers, read, 1)
        if (referrers != self.pool.refcount).any():
            wrong = np.flatnonzero(referrers != self.pool.refcount)
            raise MemoryViolation("refcount(window page) = number of its referrers", pages=wrong)
        unheld = np.flatnonzero(self.pool.in_cache & (self.pool.refcount == 1))
        if not np.array_equal(unheld, self._order.members()) or len(unheld) != self._order.count:
            raise MemoryViolation("window pages that only the cache refers to may leave", pages=unheld)
        idle = np.setdiff1d(np.arange(len(self.start)), list(rows))
        if self._present[idle].any() or self.start[idle].any() or self.escrow.promised[idle].any():
            raise MemoryViolation("a slot that is not in use owns no window page")
