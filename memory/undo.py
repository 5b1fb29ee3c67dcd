"""How the verbs of a step are taken back.

A request may leave while its step is in flight: its slot waits at the fence then, all else of it is settled, and
nothing is left to undo. What the step had added to the digest stays, so `Digest.undoing` is lowered by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pawl.memory.arrays import Indices, Int32s
from pawl.memory.page_table import NO_ENTRIES, PageEntries

if TYPE_CHECKING:
    from pawl.memory.memory import Memory


class Undo:
    """The inverse of each undoable change of `Memory`, for `Transaction.change`."""

    __slots__ = ("_cache", "_digest", "_escrow", "_ledger", "_pages", "_slots", "_table", "_windows")

    def __init__(self, memory: Memory) -> None:
        self._ledger, self._digest = memory.ledger, memory.ledger.digest
        self._slots, self._table, self._pages = memory.slots, memory.page_table, memory.pages
        self._escrow, self._cache, self._windows = memory.escrow, memory.cache, memory.windows

    def share(self, slot: int, pages: Int32s) -> None:
        """The row refers to these cached pages no more."""
        if self._stayed(slot):
            self._pages.unshare(pages)

    def admit(self, slot: int) -> None:
        """Empty the row, of which only the pages of its prefix are left, and let go of that, which was not used, and of
        the slot."""
        if self._stayed(slot):
            self._windows.unjoin(slot, self._table.row(slot))
            self._escrow.unpromise(slot)
            hold = self._table.clear(slot)
            if hold is not None:
                self._cache.release(hold, self._ledger.resolved, used=False)
            self._slots.untake(slot)

    def spend(self, slots: Indices, covered: Int32s) -> None:
        """Promise the slots so many pages again."""
        stayed = self._slots.in_use[slots]
        self._escrow.restore(slots[stayed], covered[stayed])
        self._digest.undoing += self._escrow.fact(slots[~stayed], covered[~stayed])

    def extend(self, slots: Indices, num_pages: Int32s, lengths: Int32s, grown: Int32s, entries: PageEntries) -> None:
        """The rows had so many pages and such lengths; they grew by `grown` positions and `entries`."""
        stayed = self._slots.in_use[slots]
        if not stayed.all():
            gone = ~self._slots.in_use[entries.slots]
            worth = self._table.worth(PageEntries(*(column[gone] for column in entries)))
            self._digest.undoing -= worth + self._table.worth_of_positions(slots[~stayed], grown[~stayed])
            slots, num_pages, lengths = slots[stayed], num_pages[stayed], lengths[stayed]
        self._table.cut(slots, num_pages, lengths)

    def advance(self, slots: Indices, lengths: Int32s) -> None:
        """The rows had such lengths, and no fewer pages; they grew by one position each."""
        self.extend(slots, self._table.num_pages[slots], lengths, np.ones(len(slots), np.int32), NO_ENTRIES)

    def extend_slot(self, slot: int, num_pages: int, length: int, covered: int) -> None:
        """`extend` for one slot, which has spent so many promises."""
        if self._stayed(slot):
            self._table.cut_one(slot, num_pages, length)
            self._escrow.promise(slot, covered)

    def _stayed(self, slot: int) -> bool:
        """Whether the slot's request has not left since; if it has, nothing of what is being undone changes."""
        if self._slots.in_use[slot]:
            return True
        self._digest.undoing = 0
        return False
