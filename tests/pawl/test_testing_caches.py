"""A cache that is watched is judged by books that are kept page by page: what each policy states, holds, steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pawl.memory.arrays import Int32s
from pawl.memory.memory import Memory
from pawl.memory.prefix.base import Eviction
from pawl.memory.prefix.compiled import CompiledRadixCache, CompiledUnavailable
from pawl.memory.prefix.order import POLICIES
from pawl.memory.prefix.radix import RadixCache
from pawl.testing.caches import LEAVES, watch_cache, watch_room

SIZE = 2
KINDS: tuple[Any, ...] = (RadixCache, CompiledRadixCache)


def tokens(text: str) -> Int32s:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def watched(kind: Any, eviction: str = "lru") -> tuple[Any, list[str]]:
    told: list[str] = []
    try:
        cache = kind(SIZE, eviction)
    except CompiledUnavailable as missing:
        pytest.skip(missing.reason)
    watch_cache(cache, eviction, lambda name, text: told.append(f"{name}: {text}"), exact=True)
    return cache, told


def keep(cache: Any, text: str, *pages: int, fence: int = 0, priority: int = 0) -> None:
    """A request computes this, caches it and ends."""
    found = cache.match_and_hold(tokens(text), "", priority)
    hold = cache.insert(tokens(text), np.array(pages, np.int32), "", found, fence, priority).hold
    cache.release(hold, fence)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eviction", POLICIES)
def test_each_policy_is_as_it_is_stated(eviction: str, kind: Any) -> None:
    random = np.random.default_rng(5)
    cache, told = watched(kind, eviction)
    free, holds = list(range(24)), list[Any]()
    for step in range(400):
        text = "".join(random.choice(["ab", "cd", "ef"], random.integers(1, 5)))
        hold = cache.match_and_hold(tokens(text), "", int(random.integers(3)))
        missing = len(text) // SIZE - len(hold.pages)
        if len(free) < missing:
            gone: Eviction = cache.evict(int(random.integers(1, 4)))
            free += gone.pages.tolist()
        if len(free) >= missing and random.random() < 0.8:
            pages = [*hold.pages.tolist(), *free[:missing]]
            del free[:missing]
            hold = cache.insert(tokens(text), np.array(pages, np.int32), "", hold, step, 1).hold
            holds.append(hold)
        else:
            cache.release(hold, step, used=False)
        while len(holds) > 3:
            cache.release(holds.pop(int(random.integers(len(holds)))), step)
    assert told == []
    assert cache.statistics()["evicted_pages"] > 20
    assert cache.statistics()["splits"] > 5
    for hold in holds:
        cache.release(hold, 400)
    cache.reset()
    assert told == []
    assert LEAVES.keys() == POLICIES.keys()


def _another_victim(cache: Any) -> None:
    cache._order.remove(cache._order.victim)
    cache.evict(1)


def _more_is_there(cache: Any) -> None:
    cache._reach = lambda root, data: (root, 0, 0)
    cache.match_and_hold(tokens("abcd"), "")


def _too_few(cache: Any) -> None:
    cache._evict = lambda count: Eviction(np.empty(0, np.int32), 0)
    cache.evict(1)


def _who_is_held(cache: Any) -> None:
    cache.match_and_hold(tokens("ab"), "")
    cache._evict = lambda count: Eviction(np.array([1], np.int32), 9)
    cache.evict(1)


def _too_soon(cache: Any) -> None:
    evict = cache._evict
    cache._evict = lambda count: evict(count)._replace(fence=6)
    cache.evict(1)


def _miscounted(cache: Any) -> None:
    cache._evictable += 1
    cache.match_and_hold(tokens("zz"), "")


def _behind_what_goes_on(cache: Any) -> None:
    keep(cache, "abcdef", 1, 2, 4, fence=7)
    cache._evict = lambda count: Eviction(np.array([1], np.int32), 9)
    cache.evict(1)


@pytest.mark.parametrize(
    ("falsify", "words"),
    [
        (_another_victim, "pages .3. left before page 2, whose turn it was"),
        (_more_is_there, "pages .. were found for .97, 98, 99, 100., and .1, 2. are there"),
        (_too_few, "0 pages left where 1 were wanted and 3 might"),
        (_who_is_held, "of pages .1., which left, one is held or was not there"),
        (_too_soon, "no_reuse_before_fence: pages .* left behind step 6, not 7"),
        (_miscounted, "said to be held by nobody"),
        (_behind_what_goes_on, "pages .1. left before those that go on from them"),
    ],
)
def test_a_cache_that_is_wrong_is_told(falsify: Callable[[Any], None], words: str) -> None:
    cache, told = watched(RadixCache)
    keep(cache, "abcd", 1, 2, fence=7)
    keep(cache, "xy", 3, fence=8)
    assert told == []
    falsify(cache)
    assert any(re.search(words, text) for text in told), told


@pytest.mark.parametrize(("wanted", "words"), [(1, ""), (2, "2 pages are made to leave where 1 are lacking")])
def test_more_than_memory_lacks_is_not_made_to_leave(wanted: int, words: str) -> None:
    memory, told = Memory(num_pages=4, num_slots=1, max_context=8, cache=RadixCache(SIZE)), list[str]()
    report = lambda name, text: told.append(f"{name}: {text}")  # noqa: E731
    watch_room(memory, watch_cache(memory.cache, "lru", report, exact=True))
    transaction = memory.ledger.begin()
    assert memory.admit(transaction, tokens("abcdef"), "", use_cache=True) is not None
    assert memory.extend_slot(transaction, 0, 6) is not None
    memory.ledger.prepare(transaction)
    memory.ledger.commit(transaction)
    memory.share_prefix(0, tokens("abcdef"), "")
    memory.release(0)
    own = memory.cache.evict
    memory.cache.evict = lambda count: own(wanted)  # type: ignore[method-assign]
    assert memory.make_room(2)
    assert told == ([f"cache_as_stated: {words}"] if words else [])
