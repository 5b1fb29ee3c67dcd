"""Rows of the page table: what each running request has, written here only, with what it adds to the digest.

    slot s:  pages[s, 0 .. num_pages[s]-1]          pages of positions 0 .. length[s]-1
             ├── the first of them are shared with the prefix cache (holds[s] keeps them there)
             └── the others belong to s alone, until the cache adopts them
             entries beyond num_pages[s] mean nothing

`length[s]` counts the positions whose keys and values are computed or being computed by a step in flight.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np

from pawl.memory.arrays import NO_PAGES, ONE, Indices, Int32s
from pawl.memory.digest import Digest, total
from pawl.memory.page_pool import PagePool, consecutive
from pawl.memory.prefix.base import Hold


class PageEntries(NamedTuple):
    """New page-table entries: `PageTable.pages[slots[i], indices[i]] = pages[i]`; int32 [n] each."""

    slots: Int32s
    indices: Int32s
    pages: Int32s


NO_ENTRIES = PageEntries(NO_PAGES, NO_PAGES, NO_PAGES)


class PageTable:
    """`pages`: int32 [num_slots, pages of the longest row]; `num_pages`, `length`: int32 [num_slots]; `holds`: one for
    each slot."""

    __slots__ = (
        "_digest",
        "_held",
        "_hold_keys",
        "_index_keys",
        "_indices",
        "_length_keys",
        "_moves",
        "_namespaces",
        "_page_keys",
        "_slot_keys",
        "holds",
        "length",
        "num_pages",
        "pages",
    )

    def __init__(self, digest: Digest, num_slots: int, max_context: int, pool: PagePool) -> None:
        width = -(-max_context // pool.page_size)
        self.pages: Int32s = np.zeros((num_slots, width), np.int32)
        self.num_pages: Int32s = np.zeros(num_slots, np.int32)
        self.length: Int32s = np.zeros(num_slots, np.int32)
        self.holds: list[Hold | None] = [None] * num_slots
        self._indices: Int32s = np.arange(width, dtype=np.int32)
        self._indices.flags.writeable = False
        self._digest = digest
        self._moves = pool.moves
        self._slot_keys = digest.keys(num_slots)
        self._index_keys = digest.keys(width)
        self._page_keys = digest.keys(pool.total)
        self._length_keys = digest.keys(num_slots)
        self._hold_keys: list[int] = digest.keys(num_slots).tolist()
        self._namespaces = [0] * num_slots
        self._held = [0] * num_slots
        """What each slot's hold has added to the digest."""

    # ---- many rows ----

    def append(self, entries: PageEntries, slots: Indices, num_pages: Int32s) -> None:
        """Distinct rows get new entries at their ends and have so many pages then."""
        self._digest.value += self.worth(entries)
        self.pages[entries.slots, entries.indices] = entries.pages
        self.num_pages[slots] = num_pages

    def lengthen(self, slots: Indices, lengths: Int32s, grown: Int32s) -> None:
        """Distinct rows grow by so many positions, to these lengths."""
        self._digest.value += self.worth_of_positions(slots, grown)
        self.length[slots] = lengths

    def advance(self, slots: Indices, starts: Int32s) -> None:
        """Distinct rows grow by one position each, from these lengths."""
        if len(slots) == 1:
            self._digest.value += int(self._length_keys[slots[0]])
        else:
            self._digest.value += total(self._length_keys.take(slots))
        self.length[slots] = starts + ONE

    def cut(self, slots: Indices, num_pages: Int32s, lengths: Int32s) -> None:
        """Distinct rows are so short again."""
        count = self.num_pages[slots] - num_pages
        if count.any():
            rows, indices = np.repeat(slots.astype(np.int32), count), consecutive(num_pages, count)
            self._digest.value -= self.worth(PageEntries(rows, indices, self.pages[rows, indices]))
            self.num_pages[slots] = num_pages
        self._digest.value -= self.worth_of_positions(slots, self.length[slots] - lengths)
        self.length[slots] = lengths

    def worth(self, entries: PageEntries) -> int:
        """What these entries add to the digest."""
        places = self._slot_keys.take(entries.slots) * self._index_keys.take(entries.indices)
        return int(places.dot(self._page_keys.take(entries.pages)))

    def worth_of_positions(self, slots: Indices, counts: Int32s) -> int:
        """What so many positions of these rows add to the digest."""
        if len(slots) == 1:
            return int(self._length_keys[slots[0]]) * int(counts[0])
        return int(self._length_keys.take(slots).dot(counts))

    # ---- one row ----

    def row(self, slot: int) -> Int32s:
        """The slot's pages, int32 [num_pages[slot]]; a view."""
        row: Int32s = self.pages[slot, : self.num_pages.item(slot)]
        return row

    def entries(self, slot: int, first: int = 0) -> PageEntries:
        """Those that the slot has now, from its page `first` on."""
        pages = self.pages[slot, first : self.num_pages.item(slot)].copy()
        slots = np.empty(len(pages), np.int32)
        slots.fill(slot)
        return PageEntries(slots, self._indices[first : first + len(pages)], pages)

    def hold(self, slot: int, hold: Hold, namespace: str) -> None:
        """This is held for the row from now on, in place of what was."""
        self.holds[slot] = hold
        self._namespaces[slot] = _number_of(namespace)
        held = self._worth_of_hold(slot, hold.num_tokens)
        self._digest.value += held - self._held[slot]
        self._held[slot] = held

    def unhold(self, slot: int) -> Hold | None:
        """Nothing is held any more; what was."""
        self._digest.value -= self._held[slot]
        self._held[slot] = 0
        hold, self.holds[slot] = self.holds[slot], None
        return hold

    def grow(self, slot: int, first: int, pages: Int32s, length: int) -> None:
        """The row's entries from `first` on, its end, are these pages, and it is so long now."""
        worth = self._length_keys.item(slot) * (length - self.length.item(slot))
        end = first + len(pages)
        if end > first:
            worth += self._worth_in(slot, first, pages)
            self.pages[slot, first:end] = pages
        self._digest.value += worth
        self.num_pages[slot], self.length[slot] = end, length

    def replace(self, slot: int, indices: Int32s, pages: Int32s) -> PageEntries:
        """These entries of the row are other pages from now on."""
        rows = np.full(len(indices), slot, np.int32)
        entries = PageEntries(rows, indices, pages)
        before = PageEntries(rows, indices, self.pages[slot, indices])
        self._digest.value += self.worth(entries) - self.worth(before)
        self.pages[slot, indices] = pages
        return entries

    def cut_one(self, slot: int, num_pages: int, length: int) -> None:
        """The row is so short again."""
        worth = self._worth_in(slot, num_pages, self.pages[slot, num_pages : self.num_pages[slot]])
        worth += int(self._length_keys[slot]) * (int(self.length[slot]) - length)
        # From here on nothing can fail: an undo must not stop half-way.
        self._digest.value -= worth
        self.num_pages[slot] = num_pages
        self.length[slot] = length

    def clear(self, slot: int) -> Hold | None:
        """The row ends. What was held for it."""
        self.cut_one(slot, 0, 0)
        return self.unhold(slot)

    def _worth_in(self, slot: int, first: int, pages: Int32s) -> int:
        places = self._index_keys[first : first + len(pages)]
        return self._slot_keys.item(slot) * self._moves.worth(pages, places, self._page_keys)

    def _worth_of_hold(self, slot: int, num_tokens: int) -> int:
        return self._hold_keys[slot] * ((self._namespaces[slot] << 32) + num_tokens + 1)

    def recompute(self, used: Int32s) -> int:
        """What the rows of these slots add to the digest, O(size)."""
        value = 0
        for slot in used.tolist():
            value += self._worth_in(slot, 0, self.row(slot))
            value += int(self._length_keys[slot]) * int(self.length[slot])
            hold = self.holds[slot]
            value += self._worth_of_hold(slot, hold.num_tokens) if hold is not None else 0
        return value


@lru_cache(maxsize=1024)
def _number_of(namespace: str) -> int:
    # Namespaces may be of a client's making, and hold characters that have no encoding of their own.
    return crc32(namespace.encode(errors="surrogatepass"))
