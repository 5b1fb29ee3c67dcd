"""Shrinking slots at their tails: positions that were computed and are not wanted, as of drafts that were not accepted.

A row is shorter at once. Its pages wait until the step is resolved: where the trim is undone they are in their places
again, else they go back. Until then nobody refers to them, and nobody can have them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pawl.memory.arrays import NO_PAGES, Indices, Int32s
from pawl.memory.page_pool import consecutive
from pawl.memory.page_table import NO_ENTRIES, PageEntries
from pawl.memory.transaction import Transaction

if TYPE_CHECKING:
    from pawl.memory.memory import Memory


def trim(memory: Memory, transaction: Transaction, slots: Indices, lengths: Int32s) -> None:
    """Let distinct slots shrink to `lengths` positions, int32 [n] each; what they share with the cache must stay.

    Pages beyond are given back when `transaction` commits, and stay promised to their slots.
    """
    table = memory.page_table
    num_pages, cut = table.num_pages[slots], table.length[slots] - lengths
    kept = -(-lengths // memory.page_size)
    rows = np.repeat(slots.astype(np.int32), num_pages - kept)
    indices = consecutive(kept, num_pages - kept) if len(rows) else NO_PAGES
    tail = _Tail(memory, PageEntries(rows, indices, table.pages[rows, indices]))
    with transaction.change(tail.restore, slots, num_pages, cut):
        table.cut(slots, kept, lengths)
    if len(rows):
        memory.ledger.after(transaction.epoch, tail.give_back)


class _Tail:
    """Page-table entries that one trim has cut off."""

    __slots__ = ("_entries", "_memory")

    def __init__(self, memory: Memory, entries: PageEntries) -> None:
        self._memory = memory
        self._entries = entries

    def give_back(self) -> None:
        """The step is resolved: what has not been restored is nobody's."""
        memory, (slots, _, pages) = self._memory, self._entries
        if not len(pages):
            return
        fence = memory.ledger.fence
        memory.windows.cut(pages, fence)
        memory.pages.release(pages, fence)
        for slot in slots[memory.slots.in_use[slots]].tolist():
            memory.escrow.promise(slot, 1)

    def restore(self, slots: Indices, num_pages: Int32s, cut: Int32s) -> None:
        """The trim is undone. What slots have lost that have left since stays here."""
        memory, entries = self._memory, self._entries
        table, digest = memory.page_table, memory.ledger.digest
        stayed, there = memory.slots.in_use[slots], memory.slots.in_use[entries.slots]
        self._entries = NO_ENTRIES
        if not stayed.all():
            self._entries = PageEntries(*(column[~there] for column in entries))
            digest.undoing += table.worth(self._entries) + table.worth_of_positions(slots[~stayed], cut[~stayed])
            entries = PageEntries(*(column[there] for column in entries))
            slots, num_pages, cut = slots[stayed], num_pages[stayed], cut[stayed]
        table.append(entries, slots, num_pages)
        table.lengthen(slots, table.length[slots] + cut, cut)
