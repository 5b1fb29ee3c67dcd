"""The radix cache alone: what it finds, keeps, and lets go, and in which order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pawl.memory.arrays import Int32s
from pawl.memory.prefix.hold import RadixHold
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.violation import MemoryViolation
from tests.memory.observation import cache_content
from tests.memory.reference import Prefix, beginnings


def array(*values: int) -> Int32s:
    return np.array(values, np.int32)


def cache_with(*prefixes: tuple[int, ...], namespace: str = "") -> RadixCache:
    """Page size 1, the given prefixes inserted and let go in this order; pages count up from 0."""
    cache = RadixCache(1)
    pages = 0
    for tokens in prefixes:
        offered = np.arange(pages, pages + len(tokens), dtype=np.int32)
        pages += len(tokens)
        cache.release(cache.insert(array(*tokens), offered, namespace, None, 0).hold, 0)
    return cache


def test_a_match_ends_at_a_whole_page() -> None:
    cache = RadixCache(16)
    tokens = np.arange(64, dtype=np.int32)
    cache.insert(tokens, array(3, 1, 4, 9), "", None, 0)
    for length, expected in ((64, 4), (63, 3), (33, 2), (16, 1), (15, 0), (0, 0)):
        hold = cache.match_and_hold(tokens[:length], "")
        assert hold.num_tokens == expected * 16
        assert hold.pages.tolist() == [3, 1, 4, 9][:expected]
    cache.check_all()


def test_one_different_token_ends_the_match_before_its_page() -> None:
    cache = RadixCache(16)
    tokens = np.arange(64, dtype=np.int32)
    cache.insert(tokens, array(0, 1, 2, 3), "", None, 0)
    for position in range(64):
        other = tokens.copy()
        other[position] = 99
        assert cache.match_and_hold(other, "").num_tokens == position // 16 * 16


def test_namespaces_share_nothing() -> None:
    cache = cache_with((1, 2, 3))
    assert cache.match_and_hold(array(1, 2, 3), "adapter").num_tokens == 0
    assert cache.insert(array(1, 2, 3), array(7, 8, 9), "adapter", None, 0).adopted.tolist() == [7, 8, 9]
    assert cache.match_and_hold(array(1, 2, 3), "").pages.tolist() == [0, 1, 2]


def test_pages_offered_for_known_tokens_are_not_adopted() -> None:
    cache = cache_with((1, 2, 3))
    insertion = cache.insert(array(1, 2, 8, 9), array(10, 11, 12, 13), "", None, 0)
    assert insertion.adopted.tolist() == [12, 13]
    assert insertion.hold.pages.tolist() == [0, 1, 12, 13]


def test_a_hold_outlives_every_split_of_its_path() -> None:
    cache = RadixCache(1)
    hold = cache.insert(array(1, 2, 3, 4, 5, 6), array(0, 1, 2, 3, 4, 5), "", None, 0).hold
    for length in (5, 2, 4, 1):
        cache.release(cache.match_and_hold(array(1, 2, 3, 4, 5, 6)[:length], ""), 0)
        cache.check_all()
    assert cache.statistics()["splits"] == 4
    assert cache.evict(100).pages.tolist() == []
    assert hold.pages.tolist() == [0, 1, 2, 3, 4, 5]
    cache.release(hold, 0)
    assert (cache.held, cache.evictable) == (0, 6)


def test_a_held_beginning_stays_when_the_rest_is_evicted() -> None:
    cache = cache_with((1, 2, 3, 4))
    hold = cache.match_and_hold(array(1, 2), "")
    assert (cache.held, cache.evictable) == (2, 2)
    assert sorted(cache.evict(100).pages.tolist()) == [2, 3]
    assert hold.pages.tolist() == [0, 1]
    assert cache.match_and_hold(array(1, 2, 3, 4), "").num_tokens == 2


def test_the_least_recently_used_leaves_first() -> None:
    cache = cache_with((1, 1), (2, 2), (3, 3))
    cache.release(cache.match_and_hold(array(1, 1), ""), 0)
    assert [cache.evict(1).pages.tolist() for _ in range(3)] == [[2, 3], [4, 5], [0, 1]]


def test_a_parent_used_again_outlives_a_leaf_that_was_not() -> None:
    cache = cache_with((1, 1), (1, 1, 5), (2, 2))
    cache.release(cache.match_and_hold(array(1, 1), ""), 0)
    # [1 1] is newest; its child [5] and [2 2] are older, in this order.
    assert [cache.evict(1).pages.tolist() for _ in range(3)] == [[4], [5, 6], [0, 1]]


def test_eviction_stops_once_enough_is_gone() -> None:
    cache = cache_with((1, 1), (2, 2), (3, 3))
    assert cache.evict(3).pages.tolist() == [0, 1, 2, 3]
    assert cache.evictable == 2
    assert cache.evict(0).pages.tolist() == []


def test_a_victim_names_the_newest_step_of_everyone_who_held_it() -> None:
    cache = RadixCache(1)
    first = cache.insert(array(1, 2), array(0, 1), "", None, 3).hold
    second = cache.match_and_hold(array(1, 2), "")
    cache.release(second, 9)
    cache.release(first, 5)
    assert cache.evict(1).fence == 9


def test_who_held_a_child_held_its_parents() -> None:
    cache = RadixCache(1)
    cache.release(cache.insert(array(1), array(0), "", None, 1).hold, 1)
    cache.release(cache.insert(array(1, 2), array(5, 6), "", None, 7).hold, 7)
    assert [cache.evict(1) for _ in range(2)] == [(array(6), 7), (array(0), 7)]


def test_a_split_leaves_both_halves_under_the_fence() -> None:
    cache = RadixCache(1)
    cache.release(cache.insert(array(1, 2), array(0, 1), "", None, 8).hold, 8)
    cache.release(cache.match_and_hold(array(1), ""), 2)
    assert [cache.evict(1) for _ in range(2)] == [(array(1), 8), (array(0), 8)]


def test_reset_is_refused_while_anything_is_held_and_changes_nothing() -> None:
    cache = cache_with((1, 2), (3, 4))
    hold = cache.match_and_hold(array(1), "")
    before = cache_content(cache)
    with pytest.raises(MemoryViolation, match="not reset"):
        cache.reset()
    assert cache_content(cache) == before
    cache.release(hold, 4)
    eviction = cache.reset()
    assert sorted(eviction.pages.tolist()) == [0, 1, 2, 3]
    assert eviction.fence == 4
    assert cache.statistics()["nodes"] == cache.statistics()["namespaces"] == 0
    cache.check_all()


def test_a_hold_is_released_once() -> None:
    cache = cache_with((1, 2))
    for tokens in (array(1, 2), array(7)):
        hold = cache.match_and_hold(tokens, "")
        cache.release(hold, 0)
        with pytest.raises(MemoryViolation, match="released once"):
            cache.release(hold, 0)
        with pytest.raises(MemoryViolation, match="released once"):
            cache.insert(array(1, 2), array(8, 9), "", hold, 0)
    cache.check_all()


def test_only_whole_pages_of_int32_are_inserted() -> None:
    cache = RadixCache(16)
    with pytest.raises(MemoryViolation, match="whole"):
        cache.insert(np.arange(17, dtype=np.int32), array(0), "", None, 0)
    with pytest.raises(MemoryViolation, match="whole"):
        cache.insert(np.arange(32, dtype=np.int32), array(0), "", None, 0)
    with pytest.raises(TypeError, match="int32"):
        cache.insert(np.arange(16, dtype=np.int64), array(0), "", None, 0)  # type: ignore[arg-type]


def test_pages_of_a_hold_cannot_be_written() -> None:
    cache = cache_with((1, 2), (1, 2, 3))
    for length in (1, 2, 3):
        with pytest.raises(ValueError, match="read-only"):
            cache.match_and_hold(array(1, 2, 3)[:length], "").pages[0] = 7


def test_the_caller_may_reuse_the_arrays_it_offered() -> None:
    cache = RadixCache(1)
    tokens, pages = array(1, 2), array(5, 6)
    cache.insert(tokens, pages, "", None, 0)
    tokens[:] = pages[:] = 0
    assert cache.match_and_hold(array(1, 2), "").pages.tolist() == [5, 6]


def test_statistics_and_content_tell_what_is_there() -> None:
    cache = cache_with((1, 2, 3), (1, 2, 4), namespace="a")
    cache.match_and_hold(array(1, 2, 9), "a")
    assert cache.statistics() == {
        "matches": 1,
        "hit_tokens": 2,
        "missed_tokens": 1,
        "insertions": 2,
        "adopted_pages": 4,
        "splits": 1,
        "evicted_pages": 0,
        "nodes": 3,
        "pages": 4,
        "held_pages": 2,
        "holds": 1,
        "namespaces": 1,
    }
    assert {page: block.parent for page, block in cache.content().items()} == {0: None, 1: 0, 2: 1, 5: 1}


def test_a_very_deep_tree_is_no_deep_recursion() -> None:
    cache = RadixCache(1)
    tokens = np.arange(3000, dtype=np.int32)
    hold: RadixHold = cache.match_and_hold(tokens, "")
    for length in range(1, 3001):
        inserted = cache.insert(tokens[:length], tokens[:length], "", hold, 0).hold
        assert isinstance(inserted, RadixHold)
        hold = inserted
    cache.check_all()
    assert cache.statistics()["nodes"] == len(cache.content()) == 3000
    assert hold.pages.tolist() == tokens.tolist()
    cache.release(hold, 0)
    assert len(cache.evict(3000).pages) == 3000


WORDS = st.lists(st.integers(0, 3), max_size=6)
MOVE = st.one_of(
    st.tuples(st.just("match"), st.sampled_from(["", "a"]), WORDS),
    st.tuples(st.just("insert"), st.sampled_from(["", "a"]), WORDS),
    st.tuples(st.just("insert"), st.sampled_from(["", "a"]), WORDS),
    st.tuples(st.just("release"), st.just(""), st.lists(st.integers(0, 9), min_size=1, max_size=1)),
    st.tuples(st.just("evict"), st.just(""), st.lists(st.integers(1, 9), min_size=1, max_size=1)),
)


@pytest.mark.parametrize("page_size", [1, 16, 64])
@settings(max_examples=60, deadline=None)
@given(moves=st.lists(MOVE, min_size=5, max_size=40))
def test_cache_agrees_with_a_dict_of_prefixes(page_size: int, moves: list[tuple[str, str, list[int]]]) -> None:
    cache = RadixCache(page_size)
    model: dict[Prefix, int] = {}
    holds: list[tuple[RadixHold, Prefix]] = []
    used = 0
    for move, namespace, words in moves:
        # Words 2n and 2n + 1 differ in the last token of their page only.
        tokens = tuple(token for word in words for token in [word // 2] * (page_size - 1) + [word])
        parts = beginnings((namespace, tokens), page_size)
        known = [part for part in parts if part in model]
        if move == "match":
            hold = cache.match_and_hold(array(*tokens, 99), namespace)
            assert hold.pages.tolist() == [model[part] for part in known]
            holds.append((hold, known[-1] if known else (namespace, ())))
        elif move == "insert":
            offered = np.arange(used, used + len(parts), dtype=np.int32)
            used += len(parts)
            insertion = cache.insert(array(*tokens), offered, namespace, None, 0)
            assert insertion.adopted.tolist() == offered.tolist()[len(known) :]
            model = {**dict(zip(parts, offered.tolist(), strict=True)), **model}
            assert insertion.hold.pages.tolist() == [model[part] for part in parts]
            assert isinstance(insertion.hold, RadixHold)
            holds.append((insertion.hold, (namespace, tokens)))
        elif move == "release" and holds:
            cache.release(holds.pop(words[0] % len(holds))[0], 0)
        elif move == "evict":
            gone = set(cache.evict(words[0]).pages.tolist())
            kept = {part for _, prefix in holds for part in beginnings(prefix, page_size)}
            assert not {model[part] for part in kept} & gone
            assert len(gone) >= min(words[0], len(model) - len(kept))
            model = {part: page for part, page in model.items() if page not in gone}
        cache.check_all()
        held = {part for _, prefix in holds for part in beginnings(prefix, page_size)}
        assert cache_content(cache)[0] == model
        assert (cache.held, cache.evictable) == (len(held), len(model) - len(held))
