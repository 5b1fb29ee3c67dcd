"""All memory of one replica behind one face: slots, the page table, pages and the prefix cache, in transactions.

    request ── slot s ── row of the page table    p4  p9  p2  p7            p4, p9: shared with the prefix cache
                                                   │   │   │   │            p2, p7: owned by the row alone
               pages of the pool                  p4  p9  p2  p7
               their partners in the window pool   ·   ·  w3  w0            only where a model needs a second pool

`Memory` puts together what others own: page_table.py, page_pool.py, slot_pool.py, escrow.py (promises), prefix/ (the
cache) and window_pool.py. The verbs of a step go through its transaction and can be undone (undo.py); the others are
final, and what a step in flight may still touch waits behind its fence (transaction.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pawl.memory.arrays import NO_PAGES, ONE, Bools, Indices, Int32s
from pawl.memory.checks import check_counters, check_memory, check_promises
from pawl.memory.digest import MASK
from pawl.memory.escrow import Escrow
from pawl.memory.moves import moves_of
from pawl.memory.page_pool import PagePool, Reservation, consecutive
from pawl.memory.page_table import NO_ENTRIES, PageEntries, PageTable
from pawl.memory.prefix.base import Eviction, Hold, PrefixCache
from pawl.memory.prefix.events import Cleared
from pawl.memory.slot_pool import SlotPool
from pawl.memory.transaction import Ledger, Transaction
from pawl.memory.undo import Undo
from pawl.memory.window_pool import WindowPool
from pawl.memory.windows import Windows


class Granted(NamedTuple):
    """What `admit` took."""

    slot: int
    num_cached: int
    """Leading tokens that the prefix cache already had."""


class Memory:
    """Owner of every slot and page. `max_context` bounds the tokens of one request; `windows` is the second pool of
    hybrid models, None where every layer reads everything. Raises ValueError when that was made for other sizes."""

    def __init__(
        self, *, num_pages: int, num_slots: int, max_context: int, cache: PrefixCache, windows: WindowPool | None = None
    ) -> None:
        if windows is not None and (len(windows.partners.of), len(windows.start)) != (num_pages, num_slots):
            raise ValueError("the windows are of other pages or slots than there are")
        self.page_size = cache.page_size
        self._page_size = np.array(self.page_size, np.int32)
        self.windows: Windows = Windows() if windows is None else windows
        self.ledger = Ledger() if windows is None else windows.ledger
        self.pages = PagePool(num_pages, self.page_size, self.ledger, moves_of(cache))
        self.slots = SlotPool(num_slots, self.ledger)
        self.escrow = Escrow(num_slots, self.ledger.digest)
        self.cache = cache
        self.max_context = min(max_context, num_pages * self.page_size)
        self.page_table = PageTable(self.ledger.digest, num_slots, self.max_context, self.pages)
        self.pools = (self.pages, *self.windows.pools)
        """Every pool of pages: of full pages, and of window pages where there are any."""
        self._undo = Undo(self)
        self.replaced: list[PageEntries] = []
        """Page-table entries changed outside a step: the next step must carry them to the worker, before its own."""

    # ---- within a step: undoable ----

    def admit(
        self, transaction: Transaction, tokens: Int32s, namespace: str, use_cache: bool, priority: int = 0
    ) -> Granted | None:
        """Take a slot and hold what the cache has of `tokens`, all but the last (it must be computed to go on).

        None, and no change, when no slot is free.
        """
        slot, table = self.slots.next, self.page_table
        if slot is None:
            return None
        with transaction.change(self._undo.admit, slot):
            self.slots.take()
            known = tokens[: len(tokens) - 1] if use_cache else tokens[:0]
            hold = self.cache.match_and_hold(known, namespace, priority)
            table.hold(slot, hold, namespace)
            pages = hold.pages
            if len(pages):
                table.grow(slot, 0, pages, hold.num_tokens)
            self.windows.join(slot, pages)
        if len(pages):
            with transaction.change(self._undo.share, slot, pages):
                self.pages.share(pages)
        return Granted(slot, hold.num_tokens)

    def demand(self, slots: Indices, lengths: Int32s) -> Int32s:
        """Pages each slot lacks to reach its length, int32 [n]."""
        demand: Int32s = np.maximum(-(-lengths // self.page_size) - self.page_table.num_pages[slots], 0)
        return demand

    def extend(self, transaction: Transaction, slots: Indices, lengths: Int32s) -> PageEntries | None:
        """Let each slot grow to `lengths` positions, taking the pages this needs.

        None, and no change, when not enough pages are free, or those beyond what the slots have been promised are
        promised to others.
        """
        table = self.page_table
        before, lengths_before = table.num_pages[slots], table.length[slots]
        entries = NO_ENTRIES
        if np.count_nonzero(lengths > before * self.page_size):
            grow = np.maximum(-(-lengths // self.page_size) - before, 0)
            count, covered = int(grow.sum()), self.escrow.covered(slots, grow)
            num_covered = int(covered.sum())
            if not self._allows(count - num_covered):
                return None
            pages = self._take(transaction, count, slots, grow)
            if pages is None:
                return None
            if num_covered:
                with transaction.change(self._undo.spend, slots, covered):
                    self.escrow.spend(slots, covered)
            entries = PageEntries(np.repeat(slots.astype(np.int32), grow), consecutive(before, grow), pages)
        grown = lengths - lengths_before
        with transaction.change(self._undo.extend, slots, before, lengths_before, grown, entries):
            if len(entries.pages):
                table.append(entries, slots, before + grow)
            table.lengthen(slots, lengths, grown)
        return entries

    def advance(self, transaction: Transaction, slots: Indices, starts: Int32s) -> PageEntries | None:
        """`extend` by one position each, in less time where nobody needs a page. `starts`: the lengths of the slots."""
        if np.count_nonzero(starts % self._page_size) < len(starts):
            return self.extend(transaction, slots, starts + ONE)
        with transaction.change(self._undo.advance, slots, starts):
            self.page_table.advance(slots, starts)
        return NO_ENTRIES

    def extend_slot(self, transaction: Transaction, slot: int, length: int) -> Int32s | None:
        """`extend` for one slot, without the cost of arrays of one; evicts if need be. The pages it took, int32 [n]."""
        table = self.page_table
        before = table.num_pages.item(slot)
        count = -(-length // self.page_size) - before
        pages, covered = NO_PAGES, 0
        if count > 0:
            covered = min(count, self.escrow.promised.item(slot))
            if not self._allows(count - covered) or (count > self.pages.free and not self.make_room(count)):
                return None
            taken = self._take(transaction, count, (slot,), (count,))
            if taken is None:
                return None
            pages = taken
        with transaction.change(self._undo.extend_slot, slot, before, table.length.item(slot), covered):
            if covered:
                self.escrow.promise(slot, -covered)
            table.grow(slot, before, pages, length)
        return pages

    def _allows(self, uncovered: int) -> bool:
        """Whether so many pages may be taken that nobody has been promised."""
        return uncovered <= 0 or uncovered <= self.unpromised

    def _take(
        self, transaction: Transaction, count: int, slots: Indices | Sequence[int], counts: Int32s | Sequence[int]
    ) -> Int32s | None:
        """`count` pages, `counts[i]` of them for `slots[i]`, and as many partners where there are two pools; None, and
        no change, when not enough of either are to be had."""
        savepoint = transaction.savepoint()
        pages = self.pages.take(transaction, count)
        if pages is not None and not self.windows.take(transaction, slots, counts, pages):
            transaction.rollback(savepoint)
            return None
        return pages

    # ---- final ----

    def share_prefix(self, slot: int, tokens: Int32s, namespace: str, priority: int = 0) -> None:
        """Let the cache adopt the full pages that hold `tokens`, int32 [n]: committed positions 0 .. n-1 of `slot`."""
        count = len(tokens) // self.page_size
        hold = self.page_table.holds[slot]
        if hold is not None and count * self.page_size <= hold.num_tokens:
            return
        pages = self.page_table.pages[slot, :count].copy()
        fence = self.ledger.fence
        insertion = self.cache.insert(tokens[: count * self.page_size], pages, namespace, hold, fence, priority)
        if len(insertion.adopted):
            self.pages.adopt(insertion.adopted)
            self.windows.adopt(insertion.adopted)
        self.page_table.hold(slot, insertion.hold, namespace)
        if (hold.num_tokens if hold is not None else 0) // self.page_size + len(insertion.adopted) < count:
            self._deduplicate(slot, insertion.hold.pages)

    def _deduplicate(self, slot: int, pages: Int32s) -> None:
        """The cache had pages of its own for some of these tokens: use them and give ours back.

        Otherwise the slot's hold would pin pages that it does not use, and a request that needs the whole pool could
        wait for itself.
        """
        row = self.page_table.pages[slot, : len(pages)]
        indices = np.flatnonzero(row != pages).astype(np.int32)
        if not len(indices):
            return
        ours, theirs = row[indices], pages[indices]
        self.pages.share(theirs)
        self.windows.move(slot, indices, ours, theirs, self.ledger.fence)
        self.pages.release(ours, self.ledger.fence)
        self.replaced.append(self.page_table.replace(slot, indices, theirs))

    def take_replaced(self) -> list[PageEntries]:
        """Hand over `replaced`, once."""
        replaced, self.replaced = self.replaced, []
        return replaced

    def release(self, slot: int) -> None:
        """Everything that `slot` owns goes back; what a launched step may touch waits until it is resolved."""
        fence = self.ledger.fence
        pages = self.page_table.row(slot).copy()
        self.windows.leave(slot, pages, fence)
        if len(pages):
            self.pages.release(pages, fence)
        self.escrow.forget(slot)
        hold = self.page_table.clear(slot)
        if hold is not None:
            self.cache.release(hold, fence)
        self.slots.release(slot, fence)

    def slide(self, slots: Int32s, starts: Int32s, counts: Int32s) -> None:
        """A step is about to be committed that takes these slots so many positions on, but for those whose request has
        left: window pages that no later query reads go back."""
        self.windows.slide(slots, starts, counts, self.page_table)

    def window_pages(self, pages: Int32s) -> Int32s | None:
        """The partners of `pages`, int32 [n], NO_PAGE for none; None where there is one pool."""
        return self.windows.window_pages(pages)

    def make_room(self, count: int) -> bool:
        """Evict until `count` pages are free; False when that many cannot be had without waiting or retracting."""
        short = count - self.pages.free
        if short <= 0:
            return True
        if self.cache.evictable:
            self._evict(self.cache.evict(short))
        return self.pages.free >= count

    def flush(self) -> bool:
        """Empty the prefix cache. False, and no change, while any request runs or a step is in flight."""
        if self.slots.in_use.any() or self.ledger.num_in_flight:
            return False
        self._evict(self.cache.reset())
        return True

    def _evict(self, eviction: Eviction) -> None:
        if len(eviction.pages):
            self.pages.evict(eviction.pages, eviction.fence)
            self.windows.dropped(eviction.pages, eviction.fence)

    def replace(self, fresh: Memory, written: Sequence[Reservation] = ()) -> None:
        """Become `fresh`, in which nothing is taken but what is still `written` by somebody outside the steps. Of what
        memory said until now only generations are believed, and which steps there were. The cache tells that it was
        emptied."""
        fresh.ledger.follow(self.ledger)
        fresh.pages.follow(self.pages, written)
        if self.cache.events is not None:
            fresh.cache.events = [Cleared()]
        vars(self).update(vars(fresh))

    # ---- promises ----

    @property
    def obtainable(self) -> int:
        """Pages that are free or can be made so without touching a running request."""
        return self.pages.free + self.cache.evictable

    @property
    def unpromised(self) -> int:
        """Pages that are obtainable and not promised to a running request; below zero while pages that were promised
        wait for a step in flight."""
        return self.pages.free + self.cache.evictable - self.escrow.total

    def renew(self, slots: Indices, lengths: Int32s) -> int:
        """Promise every running slot, oldest request first, the pages it lacks to reach its length; what they were
        promised before is void. The number of pages that could not be promised, and that neither a step in flight
        nor a writer outside the steps will give back."""
        wants = self.demand(slots, lengths)
        short = int(wants.sum()) - int(self.escrow.renew(slots, wants, self.obtainable).sum())
        short -= self.pages.deferred + self.pages.quarantined
        return max(short, self.windows.renew(slots, wants, self.page_table), 0)

    def promise(self, slot: int, length: int) -> bool:
        """Promise a slot that has been promised nothing the pages it lacks to reach its length; False, and nothing is
        promised, when so many are not to be had."""
        num_pages = self.page_table.num_pages.item(slot)
        need = max(-(-length // self.page_size) - num_pages, 0)
        if need > self.unpromised or not self.windows.promise(slot, need, num_pages):
            return False
        self.escrow.promise(slot, need)
        return True

    def affordable(self, slots: Indices, lengths: Int32s) -> Bools:
        """Which slots can grow to their length now, with pages that are promised to them and free, bool [n]; the first
        ones choose first. Evicts if need be."""
        demand = self.demand(slots, lengths)
        self.make_room(int(demand.sum()))
        return self.windows.keep(self.escrow.kept(slots, demand, self.pages.free), slots, demand)

    # ---- pages that are written outside the steps ----

    def reserve(self, count: int) -> Reservation | None:
        """Put `count` pages into quarantine for a writer outside the steps, evicting if need be; None, and no page
        moved there, when so many are not to be had without breaking a promise or waiting."""
        if count > self.unpromised or not self.make_room(count):
            return None
        reservation = self.pages.reserve(count)
        check_promises(self)  # who runs would be promised less with the next plan, and nobody would see it
        return reservation

    def publish(self, reservation: Reservation, count: int, tokens: Int32s, namespace: str, hold: Hold) -> Hold:
        """The first `count` pages of the reservation are written and continue the prefix that `hold` keeps: cache them.

        `tokens`: int32 [hold.num_tokens + count * page_size]. Returns a hold on all of it, in place of `hold`. Pages
        that were not written, and those the cache has had meanwhile from somebody else, are free again: the writer must
        have ended. Raises MemoryViolation for a stale reservation.
        """
        self.pages.check_handle(reservation)
        fence, pages = self.ledger.fence, np.concatenate((hold.pages, reservation.pages[:count])).astype(np.int32)
        insertion = self.cache.insert(tokens, pages, namespace, hold, fence)
        kept = np.isin(reservation.pages, insertion.adopted)
        self.pages.publish(Reservation(reservation.pages[kept], reservation.generations[kept]))
        self.pages.withdraw(Reservation(reservation.pages[~kept], reservation.generations[~kept]))
        return insertion.hold

    def withdraw(self, reservation: Reservation) -> None:
        """Nothing of the reservation is wanted, and its writer is known to write no more."""
        self.pages.withdraw(reservation)

    # ---- checks ----

    def check(self) -> None:
        """What must hold after every step; O(1)."""
        check_counters(self)

    def check_all(self) -> None:
        """Every property, O(size): for tests and the idle self-check."""
        check_memory(self)

    def digest(self) -> int:
        """64 bits that change when any fact of memory does; kept up to date, so this costs nothing."""
        return self.ledger.digest.value & MASK
