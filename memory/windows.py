"""What memory tells the second pool of pages, which some models need for their windowed layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pawl.memory.arrays import Bools, Indices, Int32s
from pawl.memory.page_pool import PagePool
from pawl.memory.page_table import PageTable
from pawl.memory.transaction import Transaction


class Windows:
    """No second pool: every layer reads everything, all that is asked for is there. `WindowPool` is one.

    Verbs name full pages, int32 [n]; the second pool knows the partner of each.
    """

    pools: Iterable[PagePool] = ()
    """The pools of pages besides that of full pages."""

    # ---- within a step: undoable ----

    def join(self, slot: int, pages: Int32s) -> None:
        """A row begins with these full pages of the cache and reads on from their end. The caller logs `unjoin`."""

    def unjoin(self, slot: int, pages: Int32s) -> None:
        """Take back a `join`, which may not have happened."""

    def take(
        self, transaction: Transaction, slots: Indices | Sequence[int], counts: Int32s | Sequence[int], pages: Int32s
    ) -> bool:
        """Partners for new full pages, `counts[i]` of them for `slots[i]`; evicts if need be.

        False, and no partner is taken, when there is no room, or when those beyond what the slots have been promised
        are promised to others.
        """
        return True

    # ---- final ----

    def slide(self, slots: Int32s, starts: Int32s, counts: Int32s, table: PageTable) -> None:
        """Rows are committed so many positions on from `starts`: they let go of the window pages that no later query
        reads. Rows that have ended are passed over."""

    def leave(self, slot: int, pages: Int32s, fence: int) -> None:
        """The row ends; `pages` are all its full pages. Called before those are given back themselves."""

    def cut(self, pages: Int32s, fence: int) -> None:
        """Rows let go of these full pages at their ends. Called before those are given back themselves."""

    def adopt(self, pages: Int32s) -> None:
        """The cache adopts these full pages of a row: it becomes one more referrer of the partners they have."""

    def move(self, slot: int, indices: Int32s, ours: Int32s, theirs: Int32s, fence: int) -> None:
        """The row moves from its own full pages to those that the cache has for the same tokens, int32 [n] each."""

    def dropped(self, pages: Int32s, fence: int) -> None:
        """These full pages have left the cache: so do their partners."""

    def window_pages(self, pages: Int32s) -> Int32s | None:
        """The partners of full pages, int32 [n], NO_PAGE for a page without one; None where there is one pool."""
        return None

    # ---- promises ----

    def promise(self, slot: int, count: int, num_pages: int) -> bool:
        """Promise a row of `num_pages` pages what it needs of the second pool for `count` more; False if it cannot be
        had."""
        return True

    def renew(self, slots: Indices, counts: Int32s, table: PageTable) -> int:
        """Promise rows what they need of the second pool for `counts` more pages, oldest row first.

        Returns how many pages are short when all that is in flight is committed, at most 0 when none is.
        """
        return 0

    def keep(self, able: Bools, slots: Indices, counts: Int32s) -> Bools:
        """Those of the `able` slots that can take partners for `counts` pages now, bool [n]; evicts if need be."""
        return able

    # ---- checks ----

    def check(self) -> None:
        """What must hold after every step; O(1). Raises MemoryViolation."""

    def check_all(self, full: PagePool, rows: Mapping[int, Int32s]) -> None:
        """Every property, O(size); `rows`: the full pages of each slot in use. Raises MemoryViolation."""

    def recompute(self) -> int:
        """What the second pool adds to the digest, O(size)."""
        return 0
