"""The cache that shares nothing, and the choice between caches."""

from __future__ import annotations

import numpy as np
import pytest

from pawl.memory.memory import Memory
from pawl.memory.prefix.base import PrefixCache
from pawl.memory.prefix.chunk import ChunkCache
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.prefix.select import CACHES, KINDS, make_cache
from pawl.memory.violation import MemoryViolation

TOKENS = np.arange(32, dtype=np.int32)
PAGES = np.array([4, 5], np.int32)


def test_nothing_inserted_is_ever_found() -> None:
    cache = ChunkCache(16)
    insertion = cache.insert(TOKENS, PAGES, "", None, 0)
    assert insertion.adopted.tolist() == insertion.hold.pages.tolist() == []
    assert cache.match_and_hold(TOKENS, "").num_tokens == 0
    assert (cache.held, cache.evictable) == (0, 0)
    assert cache.evict(8).pages.tolist() == cache.reset().pages.tolist() == []
    assert cache.statistics()["missed_tokens"] == 32


def test_an_empty_hold_is_released_once_too() -> None:
    cache = ChunkCache(16)
    first = cache.match_and_hold(TOKENS, "")
    second = cache.insert(TOKENS, PAGES, "", first, 0).hold
    assert cache.statistics()["holds"] == 1
    with pytest.raises(MemoryViolation, match="released once"):
        cache.release(first, 0)
    cache.release(second, 0)
    assert cache.statistics()["holds"] == 0
    cache.check_all()


def test_a_hold_of_another_cache_is_noticed() -> None:
    with pytest.raises(MemoryViolation, match="the cache that gave it"):
        ChunkCache(16).release(RadixCache(16).match_and_hold(TOKENS, ""), 0)
    with pytest.raises(MemoryViolation, match="the cache that gave it"):
        RadixCache(16).release(ChunkCache(16).match_and_hold(TOKENS, ""), 0)
    for cache, other in ((ChunkCache(16), ChunkCache(16)), (RadixCache(16), RadixCache(16))):
        for hold in (other.match_and_hold(TOKENS, ""), other.insert(TOKENS, PAGES, "", None, 0).hold):
            with pytest.raises(MemoryViolation, match="the cache that gave it"):
                cache.release(hold, 0)
            with pytest.raises(MemoryViolation, match="the cache that gave it"):
                cache.insert(TOKENS, PAGES, "", hold, 0)
            other.release(hold, 0)
        cache.check_all()
        assert cache.statistics()["holds"] == other.statistics()["holds"] == cache.statistics()["pages"] == 0


@pytest.mark.parametrize("name", CACHES)
def test_every_cache_serves_a_whole_memory_and_gives_all_of_it_back(name: str) -> None:
    memory = Memory(num_pages=4, num_slots=2, max_context=64, cache=make_cache(name, 16))
    found = []
    for _ in range(2):
        transaction = memory.ledger.begin()
        granted = memory.admit(transaction, TOKENS, "", True)
        assert granted is not None
        found.append(granted.num_cached)
        grown = memory.extend(transaction, np.array([granted.slot], np.int32), np.array([32], np.int32))
        assert grown is not None
        memory.ledger.prepare(transaction)
        memory.ledger.commit(transaction)
        memory.share_prefix(granted.slot, TOKENS, "")
        memory.check_all()
        memory.release(granted.slot)
        memory.check_all()
    assert found == ([0, 16] if KINDS[name].shares else [0, 0])
    assert memory.flush()
    assert memory.pages.free == 4


def test_caches_are_chosen_by_name_in_one_place() -> None:
    cache: PrefixCache = make_cache("radix", 64)
    assert isinstance(cache, RadixCache)
    assert cache.page_size == 64
    assert isinstance(make_cache("none", 1), ChunkCache)
    with pytest.raises(ValueError, match=f"unknown prefix cache 'lru'; there are: {', '.join(CACHES)}"):
        make_cache("lru", 1)
    for name in CACHES:
        with pytest.raises(ValueError, match="at least one token"):
            make_cache(name, 0)
