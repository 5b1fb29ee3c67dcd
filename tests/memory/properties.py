"""The properties of memory as statements and predicates in their own words: over arrays and sets, not `check_all()`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from pawl.memory.page_pool import Reservation
from tests.memory.every_verb import EveryVerb, WithoutCache

STATEMENTS: Mapping[int, str] = {
    1: "free + owned + cached + deferred + quarantined = total, after every operation",
    2: "the free stack has no duplicate; no page is both free and referenced",
    3: "refcount(page) = number of its referrers; never negative; checked before it moves",
    4: "a page that can be written has one owner; a full page shared by the cache is never written",
    5: "handle.generation = generation(page)",
    6: "row length <= pages x page size, and > (pages - 1) x page size",
    7: "holds(node) = its own holders + its held children; a held node is never evicted",
    8: "sum of promises <= free + evictable (+ what waits behind the fence of a step in flight)",
    9: "rollback restores the state digest taken at the savepoint, whatever operation fails",
    10: "a request that has ended owns no page, slot, hold, promise or timer",
    11: "a deferred page is not allocated while a step of its epoch is in flight",
    12: "looking up a prefix and holding it is one operation",
    13: "failure to allocate never stops the scheduler: the request waits, or is aborted with a cause",
    14: "flushing while requests run drains them or refuses; it never loses one",
}


class Broken(AssertionError):
    """A property does not hold."""

    def __init__(self, number: int) -> None:
        super().__init__(f"property {number}: {STATEMENTS[number]}")


def classes(history: EveryVerb) -> dict[str, set[int]]:
    """Where every page is: free and marked ones as the pool has them, the rest as it must be from rows and cache."""
    pages, state = history.memory.pages, history.reference.state
    cached = set(np.flatnonzero(pages.in_cache).tolist())
    return {
        "free": set(pages.free_pages.tolist()),
        "owned": {page for row in state.rows.values() for page in row.pages} - cached,
        "cached": cached,
        "deferred": set(state.deferred_pages),
        "quarantined": set(np.flatnonzero(pages.reserved).tolist()),
    }


def conserved(history: EveryVerb) -> bool:
    """Property 1."""
    where, counters = classes(history), history.memory.pages.counters()
    counted = all(len(pages) == counters[name] for name, pages in where.items())
    return counted and Counter(page for pages in where.values() for page in pages) == Counter(range(counters["total"]))


def free_once(history: EveryVerb) -> bool:
    """Property 2."""
    pages = history.memory.pages
    free = pages.free_pages.tolist()
    return len(free) == len(set(free)) and not pages.refcount[free].any() and not pages.reserved[free].any()


def referrers_counted(history: EveryVerb) -> bool:
    """Property 3."""
    memory = history.memory
    rows = Counter(page for slot in memory.slots.used.tolist() for page in memory.page_table.row(slot).tolist())
    rows.update(np.flatnonzero(memory.pages.in_cache).tolist())
    return memory.pages.refcount.tolist() == [rows[page] for page in range(memory.pages.total)]


def written_by_one(history: EveryVerb) -> bool:
    """Property 4: pages that a step in flight writes belong to one row each, and the cache has none of them."""
    pages, rows = history.memory.pages, history.reference.state.rows
    for step in history.in_flight:
        for slot, written in history.writes[step.transaction.epoch].items():
            if slot in rows and any(pages.refcount[page] != 1 or pages.in_cache[page] for page in written):
                return False
    return True


def handles_known(history: EveryVerb) -> bool:
    """Property 5: the handles of fetches that go on are good, those of fetches that have ended never again."""
    pages = history.memory.pages

    def good(handle: Reservation) -> np.ndarray:
        return (pages.generation[handle.pages] == handle.generations) & pages.reserved[handle.pages]

    return all(good(fetch.reservation).all() for fetch in history.fetches) and not any(
        good(handle).any() for handle in history.stale
    )


def rows_fit(history: EveryVerb) -> bool:
    """Property 6."""
    memory = history.memory
    length = memory.page_table.length[memory.slots.used]
    room = memory.page_table.num_pages[memory.slots.used] * memory.page_size
    return bool(((room - memory.page_size < length) & (length <= room)).all())


def holds_counted(history: EveryVerb) -> bool:
    """Property 7: what rows and fetches keep, and all before it, is there and may not be evicted."""
    state, cache = history.reference.state, history.memory.cache
    cache.check_all()
    return state.held <= set(state.cache) and cache.held == len(state.held) and cache.evictable == state.evictable


def promises_kept(history: EveryVerb) -> bool:
    """Property 8."""
    memory = history.memory
    obtainable = memory.pages.free + memory.cache.evictable + memory.pages.deferred
    return int(memory.escrow.promised.sum()) <= obtainable and not (memory.escrow.promised < 0).any()


def rollbacks_restored(history: EveryVerb) -> bool:
    """Property 9: no rollback so far has left another digest than it should; where nothing else had happened, that of
    the savepoint, which the history compares itself."""
    return history.memory.ledger.digest.unrestored is None


def fences_kept(history: EveryVerb) -> bool:
    """Property 11: nothing that a step in flight touches is free, nor used by anybody but whom it was launched for."""
    free, rows = set(history.memory.pages.free_pages.tolist()), history.reference.state.rows
    return not any(
        step.pages & free or any(slot in history.memory.slots._free for slot in step.slots - set(rows))
        for step in history.in_flight
    )


PREDICATES: Mapping[int, Callable[[EveryVerb], bool]] = {
    1: conserved,
    2: free_once,
    3: referrers_counted,
    4: written_by_one,
    5: handles_known,
    6: rows_fit,
    7: holds_counted,
    8: promises_kept,
    9: rollbacks_restored,
    11: fences_kept,
}


class Checked(EveryVerb):
    """A history in which one property is checked after every move, and the reference at the end of every step."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def start(self, num_pages: int, num_slots: int) -> None:
        super().start(num_pages, num_slots)
        self.num_checked = 0

    def laws_hold(self) -> None:
        if not PREDICATES[self.number](self):
            raise Broken(self.number)
        self.num_checked += 1


class CheckedWithoutCache(Checked, WithoutCache):
    """The same with `--cache none`."""
