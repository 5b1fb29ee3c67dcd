"""Who uses which page, as far as a trace tells.

A row uses the pages that steps enter into its part of the page table, until it leaves work. An entry of a step is

    shared    a page of the prefix cache, when it lies within the cached prefix of a request admitted with the step,
              or replaces an entry that the row has (the cache had the same tokens; the row's own page is given back)
    taken     a free page, otherwise
    void      when its row has left since the entry was made

A page that somebody uses is surely not free, nor is one that a step in flight may still touch, nor one that the cache
has: what the cache has is in lifecycle/properties/cache_view.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable
from typing import NamedTuple

from pawl.lifecycle.records import Int32s, Transition
from pawl.lifecycle.requests import Indices


class Taken(NamedTuple):
    """What was wrong with the pages that one step took."""

    out_of_range: list[int]
    repeated: list[int]
    in_use: list[int]
    """Some row uses them already."""
    in_flight: list[int]
    """A step in flight may still touch them."""


REPLACED = -1
"""In place of a page that a row has given back, until it is told what it has instead."""
NOTHING_WRONG = Taken([], [], [], [])


def _outside(pages: list[int], limit: int) -> list[int]:
    return [page for page in pages if not 0 <= page < limit]


class PageUse:
    """Users of each page, and the newest step that may touch it after its last user left."""

    def __init__(self) -> None:
        self.num_pages = 0
        """0: not known; then nothing is tracked."""
        self.taken = NOTHING_WRONG
        """By the step planned last."""
        self.fresh: list[int] = []
        """Pages that the step planned last took."""
        self.shared: list[tuple[int, int]] = []
        """(row, page of the cache) that the step planned last entered."""
        self.released: list[int] = []
        """Pages of the row that has left work last."""
        self.page_size = 1
        self._users: dict[int, int] = {}
        """page -> number of rows that use it; pages without users are left out"""
        self._fences: dict[int, int] = {}
        """page -> newest step in flight when a row let go of it"""
        self._table: dict[int, dict[int, int]] = {}
        """row -> index -> page"""
        self._place: dict[int, tuple[int, int]] = {}
        """page -> (row, index) that took it, until somebody lets go of it"""
        self._slot_of: dict[int, int] = {}
        self._row_of: dict[int, int] = {}
        """slot -> the row that has it, where pages were entered"""
        self._entered: dict[int, list[tuple[int, int]]] = {}
        """step in flight -> (row, index) of the pages it entered"""

    def size(self, num_pages: int, page_size: int) -> None:
        """The pool has `num_pages` pages of `page_size` tokens."""
        self.num_pages = num_pages
        self.page_size = max(page_size, 1)

    def begin(self, row: int, slot: int, pages: list[int], cached: Container[int]) -> None:
        """The row has this slot and these pages, of which it shares those that are cached."""
        self._slot_of[row], self._row_of[slot] = slot, row
        self._table[row] = dict(enumerate(pages))
        for index, page in enumerate(pages):
            self._users[page] = self._users.get(page, 0) + 1
            if page not in cached:
                self._place[page] = row, index

    def user_of(self, page: int) -> int | None:
        """The first row that uses `page`."""
        return next((row for row, pages in self._table.items() if page in pages.values()), None)

    def in_use(self, page: int) -> bool:
        """Whether some row uses `page`."""
        return page in self._users

    @property
    def num_in_use(self) -> int:
        """Pages that some row uses."""
        return len(self._users)

    def num_of(self, row: int) -> int:
        """Pages of the row."""
        return len(self._table.get(row, ()))

    def page_at(self, row: int, index: int) -> int | None:
        """The row's page number `index`."""
        return self._table.get(row, {}).get(index)

    def place_of(self, page: int) -> tuple[int, int] | None:
        """The row that took `page`, and the index at which it has it; None when it has let go of it."""
        return self._place.get(page)

    def planned(
        self,
        step: int,
        segments: tuple[Indices, Int32s, Int32s],
        admitted: Iterable[Transition],
        entries: tuple[Int32s, Int32s, Int32s],
        in_flight: Iterable[int],
    ) -> None:
        """A step is launched. `segments`: rows, slots, ends; `entries`: slots, indices, pages, int32; [n] each, and a
        later entry of the same place wins; `in_flight`: the steps before it that are not resolved."""
        self.taken, self.fresh, self.shared = NOTHING_WRONG, [], []
        if not len(entries[0]) or not self.num_pages:
            return
        rows, slots, ends = segments
        oldest, newest = min(in_flight, default=None), max(in_flight, default=0)
        num_shared = {move.row: (move.num_cached or 0) // self.page_size for move in admitted}
        listed = rows.tolist()
        reach = dict(zip(listed, (-(-ends // self.page_size)).tolist(), strict=True))
        rows_here = dict(zip(slots.tolist(), listed, strict=True))
        taken: list[int] = []
        entered = self._entered[step] = []
        places: dict[int, tuple[int, int]] = {}
        where = zip(entries[0].tolist(), entries[1].tolist(), strict=True)
        for (slot, index), page in dict(zip(where, entries[2].tolist(), strict=True)).items():
            row = self._row_of.get(slot)
            if row is None:
                row = rows_here.get(slot)
                if row is None:
                    continue
                self._row_of[slot], self._slot_of[row] = row, slot
            mine = self._table.setdefault(row, {})
            if index in mine:
                self._let_go(mine[index], newest)
                self.shared.append((row, page))
            elif index >= reach.get(row, 0):
                continue
            elif index < num_shared.get(row, 0):
                self.shared.append((row, page))
            else:
                taken.append(page)
                places[page] = row, index
            mine[index] = page
            entered.append((row, index))
        self.fresh = taken
        self._judge(taken, oldest)
        self._place.update(places)
        users = self._users
        for row, index in entered:
            page = self._table[row][index]
            users[page] = users.get(page, 0) + 1

    def _judge(self, taken: list[int], oldest: int | None) -> None:
        """Were these pages free when the step took them?"""
        if not taken:
            return
        fences = self._fences
        self.taken = Taken(
            [] if min(taken) >= 0 and max(taken) < self.num_pages else _outside(taken, self.num_pages),
            [] if len(set(taken)) == len(taken) else [page for page, count in Counter(taken).items() if count > 1],
            [page for page in taken if page in self._users],
            [] if oldest is None else [page for page in taken if fences.get(page, 0) >= oldest],
        )

    def _let_go(self, page: int, newest: int) -> None:
        self._place.pop(page, None)
        left = self._users.get(page, 0) - 1
        if left > 0:
            self._users[page] = left
        else:
            self._users.pop(page, None)
        self._fences[page] = max(newest, self._fences.get(page, 0))

    def left(self, row: int, newest: int) -> None:
        """The row has left work while `newest` was the newest step in flight (0: none was)."""
        places, users, fences = self._place, self._users, self._fences
        self.released = list(self._table.pop(row, {}).values())
        for page in self.released:
            places.pop(page, None)
            count = users.get(page, 0)
            if count > 1:
                users[page] = count - 1
            else:
                users.pop(page, None)
            if fences.get(page, -1) < newest:
                fences[page] = newest
        slot = self._slot_of.pop(row, None)
        if slot is not None:
            del self._row_of[slot]

    def trimmed(self, row: int, end: int, newest: int) -> None:
        """The row has `end` positions from now on; `newest` is the newest step in flight (0: none is)."""
        mine = self._table.get(row, {})
        for index in [index for index in mine if index >= -(-end // self.page_size)]:
            self._let_go(mine.pop(index), newest)

    def brought(self, pages: list[int]) -> None:
        """These came from a lower tier into the cache. A row that took one of them itself has given it back since: the
        cache had an equal one, which the next step enters in its place."""
        for page in pages:
            place = self._place.get(page)
            if place is not None:
                row, index = place
                self._let_go(page, 0)
                self._table[row][index] = REPLACED

    def committed(self, step: int) -> None:
        """The step is done: what it entered stays."""
        self._entered.pop(step, None)

    def rolled_back(self, step: int) -> None:
        """What the step entered is undone, except for rows that have left since."""
        for row, index in self._entered.pop(step, ()):
            page = self._table.get(row, {}).pop(index, None)
            if page is not None:
                self._let_go(page, 0)
