"""Matches of a sliding cache end where a window is alive; the tree below does not know of windows."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from pawl.memory.arrays import Int32s
from pawl.memory.partners import NO_PAGE
from pawl.memory.prefix.order import POLICIES
from pawl.memory.prefix.select import make_cache
from pawl.memory.prefix.sliding import SlidingCache
from pawl.memory.transaction import Ledger
from pawl.memory.window_pool import WindowPool

PAGE = 2


def sliding(behind: int, eviction: str = "lru") -> tuple[SlidingCache, WindowPool]:
    """A cache whose windows reach back `behind` pages from the end of a page."""
    windows = WindowPool(
        Ledger(),
        num_pages=40,
        num_full=40,
        num_slots=1,
        page_size=PAGE,
        window=1 + behind * PAGE,
        chunk=PAGE,
        max_context=40,
    )
    return SlidingCache(PAGE, windows, eviction), windows


def tokens(*words: int) -> Int32s:
    return np.repeat(np.array(words, np.int32), PAGE)


def store(cache: SlidingCache, windows: WindowPool, words: tuple[int, ...], alive: str) -> None:
    """Cache a prompt from page 0 on; 'x' stands for a page with a window page, '.' for a tombstone."""
    pages = np.arange(len(words), dtype=np.int32)
    windows.partners.of[pages] = [page if mark == "x" else NO_PAGE for page, mark in enumerate(alive)]
    cache.release(cache.insert(tokens(*words), pages, "", None, 0).hold, 0)


def found(cache: SlidingCache, *words: int) -> int:
    """Pages of a match. Every property holds while it is held, and after."""
    hold = cache.match_and_hold(tokens(*words), "")
    cache.check_all()
    assert len(hold.pages) * PAGE == hold.num_tokens
    assert cache.held == len(hold.pages)
    cache.release(hold, 0)
    cache.check_all()
    return len(hold.pages)


def test_a_match_needs_living_window_pages_at_its_end_and_nowhere_else() -> None:
    cache, windows = sliding(behind=2)
    store(cache, windows, tuple(range(7)), "..xx.xx")
    assert [found(cache, *range(count)) for count in range(8)] == [0, 0, 0, 0, 4, 4, 4, 7]


@pytest.mark.parametrize(
    ("behind", "alive", "pages"),
    [
        (0, ".....", 5),
        (1, "x....", 1),
        (1, "....x", 5),
        (2, "xx...", 2),
        (2, ".x...", 0),
        (3, "xxxx.", 4),
        (3, "..xxx", 5),
        (9, "xxxxx", 5),
        (9, "xxx.x", 3),
        (9, ".xxxx", 0),
    ],
)
def test_a_match_is_as_long_as_the_windows_allow(behind: int, alive: str, pages: int) -> None:
    cache, windows = sliding(behind)
    store(cache, windows, (1, 2, 3, 4, 5), alive)
    assert found(cache, 1, 2, 3, 4, 5, 6) == pages


@pytest.mark.parametrize("eviction", POLICIES)
def test_a_tree_cut_where_windows_end_keeps_its_laws_and_loses_its_leaves_first(eviction: str) -> None:
    chance = Random(4)
    cache, windows = sliding(2, eviction)
    for first in range(0, 40, 8):
        pages = np.arange(first, first + 8, dtype=np.int32)
        words = [chance.randint(0, 1) for _ in range(8)]
        cache.release(cache.insert(tokens(*words), pages, "", None, 0).hold, 0)
        for _ in range(20):
            windows.partners.of[:] = [page if chance.random() < 0.7 else NO_PAGE for page in range(40)]
            found(cache, *[chance.randint(0, 1) for _ in range(chance.randint(1, 10))])
    size = cache.evictable
    while size:
        cache.evict(1)
        cache.check_all()
        assert cache.evictable < size
        size = cache.evictable


def test_matching_short_of_tombstones_keeps_them_and_what_they_lead_to() -> None:
    cache, windows = sliding(behind=1)
    store(cache, windows, (1, 2, 3, 4), "xx..")
    before = cache.content()
    assert found(cache, 1, 2, 3, 4) == 2
    assert cache.content() == before
    windows.partners.of[3] = 3
    assert found(cache, 1, 2, 3, 4) == 4


def test_only_what_is_found_counts_as_hit() -> None:
    cache, windows = sliding(behind=1)
    store(cache, windows, (1, 2, 3), "xx.")
    found(cache, 1, 2, 3)
    statistics = cache.statistics()
    assert (statistics["hit_tokens"], statistics["missed_tokens"]) == (2 * PAGE, PAGE)


def test_the_radix_cache_slides_where_there_are_windows() -> None:
    _, windows = sliding(behind=1)
    assert isinstance(make_cache("radix", PAGE, windows=windows), SlidingCache)
    assert not isinstance(make_cache("radix", PAGE), SlidingCache)
    assert not isinstance(make_cache("none", PAGE, windows=windows), SlidingCache)
