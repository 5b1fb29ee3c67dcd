"""The second pool alone: in which order its pages leave, what rows refer to, what is refused, and its properties."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.memory.arrays import Int32s
from pawl.memory.memory import Memory
from pawl.memory.page_pool import PagePool
from pawl.memory.partners import NO_PAGE
from pawl.memory.prefix.chunk import ChunkCache
from pawl.memory.prefix.sliding import SlidingCache
from pawl.memory.recency import PageOrder
from pawl.memory.transaction import Ledger, Transaction
from pawl.memory.violation import MemoryViolation
from pawl.memory.window_pool import WindowPool

PAGE = 4


def as_array(*values: int) -> Int32s:
    return np.array(values, np.int32)


def hybrid(
    num_window_pages: int = 8, window: int = 2 * PAGE, num_pages: int = 16, chunk: int = PAGE, cache: str = "radix"
) -> tuple[Memory, WindowPool]:
    """Three slots over two pools."""
    sizes = {"num_slots": 3, "max_context": 12 * PAGE}
    windows = WindowPool(
        Ledger(),
        num_pages=num_window_pages,
        num_full=num_pages,
        page_size=PAGE,
        window=window,
        chunk=chunk,
        **sizes,
    )
    made = SlidingCache(PAGE, windows) if cache == "radix" else ChunkCache(PAGE)
    return Memory(num_pages=num_pages, cache=made, windows=windows, **sizes), windows


def tokens(*words: int) -> Int32s:
    return np.repeat(as_array(*words), PAGE)


def serve(memory: Memory, *words: int, whole: bool = True) -> int:
    """A row with these words, computed page by page, or in one step; shared and committed up to there. Its slot."""
    transaction = memory.ledger.begin()
    granted = memory.admit(transaction, np.append(tokens(*words), np.int32(99)), "", True)
    assert granted is not None
    slot, length = granted.slot, granted.num_cached
    while True:
        length = len(words) * PAGE if whole else length + PAGE
        assert memory.extend_slot(transaction, slot, length) is not None
        memory.ledger.prepare(transaction)
        memory.share_prefix(slot, tokens(*words)[:length], "")
        memory.slide(as_array(slot), as_array(0), as_array(length))
        memory.ledger.commit(transaction)
        memory.take_replaced()
        memory.check_all()
        if length >= len(words) * PAGE:
            return slot
        transaction = memory.ledger.begin()


def alive(memory: Memory, slot: int) -> list[bool]:
    """Which pages of a row have a window page."""
    assert isinstance(memory.windows, WindowPool)
    pages = memory.page_table.row(slot)
    return [bool(partner != NO_PAGE) for partner in memory.windows.partners.of[pages]]


def cached_words(memory: Memory, *words: int) -> int:
    """How many words of a prompt a request would find now."""
    hold = memory.cache.match_and_hold(tokens(*words), "")
    memory.cache.release(hold, memory.ledger.resolved)
    return hold.num_tokens // PAGE


# ---- in which order ----


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("push"), st.sets(st.integers(0, 9), max_size=5)),
            st.tuples(st.just("remove"), st.sets(st.integers(0, 9), max_size=5)),
            st.tuples(st.just("pop"), st.integers(0, 5)),
        ),
        max_size=60,
    )
)
def test_pages_leave_in_the_order_in_which_they_came(moves: list[tuple[str, set[int] | int]]) -> None:
    order, reference = PageOrder(10), list[int]()
    for name, what in moves:
        if isinstance(what, int):
            assert order.pop(what).tolist() == reference[:what]
            del reference[:what]
        elif name == "push":
            new = [page for page in sorted(what, reverse=True) if page not in reference]
            order.push(as_array(*new))
            reference += new
        else:
            order.remove(as_array(*what))
            reference = [page for page in reference if page not in what]
        assert order.count == len(reference)
        assert order.members().tolist() == sorted(reference)


class Counting(PageOrder):
    """Counts how often all groups are looked through."""

    num_compacted = 0

    def _compact(self) -> None:
        type(self).num_compacted += 1
        super()._compact()


def test_pages_that_come_and_go_for_ever_leave_nothing_behind_and_are_seldom_looked_through() -> None:
    order = Counting(8)
    for turn in range(500):
        order.push(as_array(turn % 8))
        order.remove(as_array(turn % 8))
    assert len(order._groups) <= 16
    assert order.num_compacted <= 500 // 16


def test_the_prefix_used_longest_ago_loses_its_window_first() -> None:
    memory, windows = hybrid(num_window_pages=6)
    for words in ((1, 2), (3, 4), (5, 6)):
        memory.release(serve(memory, *words))
    memory.release(serve(memory, 1, 2, 7, whole=False))
    assert [cached_words(memory, *words) for words in ((1, 2), (3, 4), (5, 6))] == [2, 1, 2]
    assert windows.make_room(1)
    assert [cached_words(memory, *words) for words in ((1, 2), (3, 4), (5, 6))] == [2, 0, 2]


def test_a_short_prompt_loses_its_end_first_and_a_long_one_what_is_farthest_behind() -> None:
    memory, windows = hybrid(num_window_pages=12, window=3 * PAGE, chunk=4 * PAGE)
    memory.release(serve(memory, 1, 2, 3))
    assert windows.make_room(windows.pool.free + 1)
    assert cached_words(memory, 1, 2, 3) == 2
    assert memory.flush()
    memory.release(serve(memory, 1, 2, 3, 4, 5, 6, whole=False))
    assert windows.make_room(windows.pool.free + 2)
    assert [cached_words(memory, *range(1, end)) for end in (5, 6, 7)] == [0, 5, 6]


# ---- what rows refer to ----


@pytest.mark.parametrize("cache", ["radix", "none"])
@pytest.mark.parametrize(
    ("window", "behind"), [(1, 0), (2, 1), (PAGE + 1, 1), (PAGE + 2, 2), (2 * PAGE + 1, 2), (2 * PAGE + 2, 3)]
)
def test_a_row_refers_to_the_pages_its_next_query_reads_from_its_last_full_page_on(
    window: int, behind: int, cache: str
) -> None:
    memory, windows = hybrid(window=window, cache=cache)
    slot = serve(memory, *range(9), whole=False)
    assert windows.start[slot] == 9 - behind
    if cache == "none":
        assert alive(memory, slot) == [False] * (9 - behind) + [True] * behind
        assert windows.pool.owned == behind


def test_window_pages_of_a_chunk_stay_cached_behind_the_row_until_somebody_needs_them() -> None:
    memory, windows = hybrid(num_window_pages=8)
    slot = serve(memory, 1, 2, 3, 4, 5, whole=False)
    assert alive(memory, slot) == [True] * 5
    assert windows.make_room(6)
    assert alive(memory, slot) == [False, False, False, True, True]
    assert not windows.make_room(7), "the row's own window is not given away"
    memory.check_all()


def begin_step(memory: Memory, last: int) -> tuple[int, Transaction]:
    """A row goes on from the words 1, 2, 3, which are cached. Its slot, and the step that computes one more."""
    transaction = memory.ledger.begin()
    granted = memory.admit(transaction, tokens(1, 2, 3, last), "", True)
    assert granted is not None
    assert memory.extend_slot(transaction, granted.slot, 4 * PAGE) is not None
    memory.ledger.prepare(transaction)
    return granted.slot, transaction


def test_two_rows_let_go_of_a_window_they_share_in_one_step() -> None:
    memory, windows = hybrid(num_window_pages=10)
    memory.release(serve(memory, 1, 2, 3))
    slots = []
    for last in (4, 5):
        slot, transaction = begin_step(memory, last)
        memory.ledger.commit(transaction)
        slots.append(slot)
    shared = windows.partners.of[memory.page_table.pages[slots[0], 1:3]]
    assert windows.pool.refcount[shared].tolist() == [3, 3]
    memory.slide(as_array(*slots), as_array(PAGE, PAGE), as_array(3 * PAGE, 3 * PAGE))
    assert windows.pool.refcount[shared].tolist() == [1, 3]
    memory.check_all()


def test_a_window_page_of_a_request_that_left_waits_for_the_step_in_flight() -> None:
    memory, windows = hybrid(cache="none")
    slot = serve(memory, 1, 2)
    transaction = memory.ledger.begin()
    assert memory.extend_slot(transaction, slot, 3 * PAGE) is not None
    memory.ledger.prepare(transaction)
    memory.release(slot)
    assert (windows.pool.free, windows.pool.deferred) == (5, 3)
    memory.ledger.abort(transaction)
    assert (windows.pool.free, windows.pool.deferred) == (8, 0)
    memory.check_all()


def test_a_window_page_that_the_cache_has_is_not_taken_again_while_a_step_of_who_left_may_read_it() -> None:
    memory, windows = hybrid(num_window_pages=4)
    slot = serve(memory, 1, 2)
    transaction = memory.ledger.begin()
    assert memory.extend_slot(transaction, slot, 3 * PAGE) is not None
    memory.ledger.prepare(transaction)
    memory.release(slot)
    free = windows.pool.free
    assert not windows.make_room(4)
    assert (windows.pool.free, windows.pool.deferred) == (free, 4 - free)
    memory.ledger.commit(transaction)
    assert windows.pool.free == 4
    memory.check_all()


def test_a_window_page_that_two_rows_shared_waits_for_the_step_of_the_one_though_the_other_let_go_of_it_later() -> None:
    memory, windows = hybrid(num_window_pages=10)
    memory.release(serve(memory, 1, 2, 3))
    stays, before = begin_step(memory, 4)
    memory.ledger.commit(before)
    leaves, transaction = begin_step(memory, 5)
    memory.release(leaves)  # its step is in flight
    memory.slide(as_array(stays), as_array(PAGE), as_array(3 * PAGE))
    free = windows.pool.free
    assert not windows.make_room(free + 2)
    assert (windows.pool.free, windows.pool.deferred) == (free, 3), (
        "the page behind both windows, theirs, and a new one"
    )
    memory.ledger.commit(transaction)
    assert (windows.pool.free, windows.pool.deferred) == (free + 3, 0)
    memory.check_all()


def test_pages_are_taken_from_both_pools_or_from_none() -> None:
    memory, windows = hybrid(num_window_pages=4, cache="none")
    slot = serve(memory, 1, 2)
    transaction = memory.ledger.begin()
    before = memory.pages.free_pages.tolist()
    assert memory.extend_slot(transaction, slot, 5 * PAGE) is None
    assert memory.extend(transaction, as_array(slot), as_array(5 * PAGE)) is None
    assert memory.pages.free_pages.tolist() == before
    assert memory.extend(transaction, as_array(slot), as_array(4 * PAGE)) is not None
    assert windows.pool.free == 0
    memory.ledger.discard(transaction)
    assert (memory.pages.free_pages.tolist(), windows.pool.free) == (before, 2)
    memory.check_all()


def test_what_is_promised_of_the_window_pool_is_kept_out_of_what_others_take() -> None:
    memory, windows = hybrid(num_window_pages=7, chunk=2 * PAGE, cache="none")
    first, second = serve(memory, 1, 2), serve(memory, 3)
    assert memory.promise(first, 12 * PAGE)
    assert windows.escrow.promised[first] == windows.most - 2, "no more than it can make use of at the same time"
    transaction = memory.ledger.begin()
    assert memory.extend_slot(transaction, second, 3 * PAGE) is None
    assert memory.extend_slot(transaction, second, 2 * PAGE) is not None
    assert memory.extend_slot(transaction, first, 4 * PAGE) is not None
    memory.ledger.discard(transaction)
    assert windows.escrow.promised[first] == windows.most - 2
    memory.check_all()


def test_what_is_promised_anew_of_the_window_pool_is_no_more_than_a_row_can_use() -> None:
    memory, windows = hybrid(num_window_pages=20, chunk=2 * PAGE, cache="none")
    slot = serve(memory, 1, 2)
    memory.renew(np.array([slot]), np.array([12 * PAGE], np.int32))
    assert windows.escrow.promised[slot] == windows.most - 2


# ---- what is refused, and the properties ----


@pytest.mark.parametrize(("num_window_pages", "window", "chunk"), [(3, 9, 4), (4, 10, 4), (4, 9, 5), (1, 1, 1)])
def test_a_pool_that_cannot_hold_one_request_is_refused(num_window_pages: int, window: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="cannot hold one request"):
        hybrid(num_window_pages=num_window_pages, window=window, chunk=chunk)
    hybrid(num_window_pages=num_window_pages + 1, window=window, chunk=chunk)


@pytest.mark.parametrize(("window", "chunk"), [(0, 4), (4, 0)])
def test_a_window_and_a_step_of_no_tokens_are_refused(window: int, chunk: int) -> None:
    with pytest.raises(ValueError, match="a window holds a token"):
        hybrid(window=window, chunk=chunk)


def test_windows_over_another_pool_are_refused() -> None:
    _, windows = hybrid(num_pages=16)
    with pytest.raises(ValueError, match="other pages or slots"):
        Memory(num_pages=15, num_slots=3, max_context=12, cache=ChunkCache(PAGE), windows=windows)


def set_item(array: np.ndarray, index: int, value: int) -> None:
    array[index] = value


def is_owned(pool: PagePool, page: int) -> None:
    pool.in_cache[page] = False
    pool.cached, pool.owned = pool.cached - 1, pool.owned + 1


Break = Callable[[Memory, WindowPool], object]
BROKEN: dict[str, tuple[str, Break]] = {
    "a window page leaks": ("free .* = total", lambda m, w: setattr(w.pool, "free", w.pool.free - 1)),
    "a partner is forgotten": (
        "partner of one full page",
        lambda m, w: set_item(w.partners.of, m.page_table.pages[0, 4], -1),
    ),
    "two pages have one partner": (
        "partner of one full page",
        lambda m, w: set_item(w.partners.of, m.page_table.pages[0, 4], w.partners.of[m.page_table.pages[0, 3]]),
    ),
    "a free page has a partner": (
        "partner of one full page",
        lambda m, w: set_item(w.partners.of, m.pages.free_pages[0], w.pool.free_pages[0]),
    ),
    "a row forgets a page it reads": ("number of its referrers", lambda m, w: set_item(w.start, 0, 4)),
    "a row reads a tombstone": ("living window pages", lambda m, w: set_item(w.start, 0, 0)),
    "the cache forgets a window page": (
        "counters equal|cached as its full page",
        lambda m, w: set_item(w.pool.in_cache, w.partners.of[m.page_table.pages[0, 4]], False),
    ),
    "a window page is owned, and its full page is cached": (
        "cached as its full page",
        lambda m, w: is_owned(w.pool, w.partners.of[m.page_table.pages[0, 4]]),
    ),
    "a window page that is read may leave": (
        "only the cache refers to",
        lambda m, w: w._order.push(w.partners.of[m.page_table.pages[0, 4:5]]),
    ),
    "a window page that nobody reads may not leave": (
        "only the cache refers to",
        lambda m, w: w._order.remove(w.partners.of[m.page_table.pages[0, 2:3]]),
    ),
    "more is promised than there is": ("promises <= free", lambda m, w: w.escrow.promise(0, 99)),
    "a slot that is idle reads": ("not in use owns no window", lambda m, w: set_item(w.start, 1, 1)),
    "a slot that is idle is promised pages": ("not in use owns", lambda m, w: w.escrow.promise(1, 1)),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_law_is_named(what: str) -> None:
    memory, windows = hybrid(num_window_pages=8)
    serve(memory, 1, 2, 3, 4, 5, whole=False)
    assert windows.make_room(5)
    memory.check_all()
    statement, broken = BROKEN[what]
    broken(memory, windows)
    with pytest.raises(MemoryViolation, match=statement):
        memory.check_all()


def test_a_row_is_not_let_in_on_a_prefix_whose_window_is_gone() -> None:
    memory, windows = hybrid(num_window_pages=8)
    memory.release(serve(memory, 1, 2, 3))
    dead = memory.cache.match_and_hold(tokens(1, 2, 3), "")
    assert windows.make_room(8)
    with pytest.raises(MemoryViolation, match="living window pages"):
        windows.join(0, dead.pages)


def test_a_row_that_begins_behind_a_cached_prefix_is_promised_pages_for_all_that_it_may_refer_to() -> None:
    memory, windows = hybrid()
    memory.release(serve(memory, 1, 2, 3, 4))
    transaction = memory.ledger.begin()
    granted = memory.admit(transaction, np.append(tokens(1, 2, 3, 4, 5), np.int32(99)), "", True)
    assert granted is not None
    assert granted.num_cached == 4 * PAGE
    first = int(windows.start[granted.slot])
    assert first > 0
    assert memory.promise(granted.slot, 12 * PAGE)
    assert windows.escrow.promised[granted.slot] == windows.most - (4 - first)
