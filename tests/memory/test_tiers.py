"""Keys name content, the index reaches as far as it knows, and host memory keeps what was used last."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.memory.prefix.events import Removed, Stored
from pawl.memory.tiers.host import HostPool
from pawl.memory.tiers.index import TierIndex
from pawl.memory.tiers.keys import KEY_BYTES, DeviceKeys, page_keys, root_key
from pawl.memory.violation import MemoryViolation

PAGE = 4
ROOT = root_key("layout", "namespace")


def int32s(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def block(value: int) -> np.ndarray:
    return np.full(8, value, np.uint8)


def key(number: int) -> bytes:
    return number.to_bytes(KEY_BYTES, "big")


# ---- keys ----


@given(
    tokens=st.lists(st.integers(0, 3), max_size=24),
    other=st.lists(st.integers(0, 3), max_size=24),
)
def test_two_pages_have_one_key_exactly_when_all_tokens_up_to_their_ends_are_equal(
    tokens: list[int], other: list[int]
) -> None:
    keys, others = (page_keys(ROOT, np.array(one, np.int32), PAGE) for one in (tokens, other))
    assert (len(keys), len(others)) == (len(tokens) // PAGE, len(other) // PAGE)
    for i, mine in enumerate(keys):
        for j, theirs in enumerate(others):
            same = i == j and tokens[: (i + 1) * PAGE] == other[: (j + 1) * PAGE]
            assert (mine == theirs) == same


def test_keys_go_on_from_a_parent_as_from_the_beginning() -> None:
    tokens = np.arange(16, dtype=np.int32)
    whole = page_keys(ROOT, tokens, PAGE)
    assert whole == page_keys(ROOT, tokens[:8], PAGE) + page_keys(whole[1], tokens[8:], PAGE)


@given(st.tuples(st.text(max_size=3), st.text(max_size=3)), st.tuples(st.text(max_size=3), st.text(max_size=3)))
def test_roots_of_different_layouts_or_namespaces_differ(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (root_key(*one) == root_key(*other)) == (one == other)


def test_the_root_of_ab_and_c_is_not_that_of_a_and_bc() -> None:
    assert root_key("ab", "c") != root_key("a", "bc")


def test_a_key_means_the_same_on_every_machine_and_in_every_version() -> None:
    # Files outlive the process: a change here makes all stored pages unreachable and needs a new file version.
    assert page_keys(root_key("l", "n"), int32s(1, 2, 3, 4), PAGE)[0].hex() == "2d6feeb65b642734d3a3952715bb74ba"


def test_device_keys_follow_what_the_cache_tells() -> None:
    device = DeviceKeys("layout", PAGE)
    tokens = np.arange(12, dtype=np.int32)
    keys = page_keys(root_key("layout", "a"), tokens, PAGE)
    assert device.stored(Stored("a", None, tokens[:8], int32s(7, 3))) == [(7, keys[0]), (3, keys[1])]
    assert device.stored(Stored("a", 3, tokens[8:], int32s(5))) == [(5, keys[2])]
    assert device.removed(Removed(int32s(5))) == [(5, keys[2])]
    assert len(device) == 2
    assert device[3] == keys[1]
    restored = DeviceKeys("layout", PAGE)
    restored.restore(device.snapshot())
    assert restored.items() == device.items() == [(7, keys[0]), (3, keys[1])]


def test_a_page_below_an_unknown_page_is_a_broken_law() -> None:
    device = DeviceKeys("layout", PAGE)
    with pytest.raises(MemoryViolation, match="hangs below"):
        device.stored(Stored("a", 9, np.arange(4, dtype=np.int32), int32s(5)))


def test_pages_whose_content_was_lost_say_nothing_when_they_are_removed() -> None:
    device = DeviceKeys("layout", PAGE)
    device.stored(Stored("a", None, np.arange(4, dtype=np.int32), int32s(7)))
    device.cleared()
    assert device.removed(Removed(int32s(7))) == []


# ---- the index ----


@given(known=st.sets(st.integers(0, 9)), start=st.integers(0, 9))
def test_the_index_reaches_to_the_first_page_it_does_not_know(known: set[int], start: int) -> None:
    index = TierIndex()
    index.kept(key(number) for number in known)
    reach = index.reach([key(number) for number in range(10)], start)
    assert all(number in known for number in range(start, start + reach))
    assert start + reach == 10 or start + reach not in known


def test_what_is_dropped_is_not_known_any_more() -> None:
    index = TierIndex()
    index.kept([key(1), key(2)])
    index.dropped([key(1), key(5)])
    assert key(1) not in index
    assert len(index) == 1


# ---- host memory ----


@given(
    capacity=st.integers(0, 4),
    uses=st.lists(st.tuples(st.booleans(), st.integers(0, 6)), max_size=40),
)
def test_host_memory_keeps_the_pages_used_last_and_their_bytes(capacity: int, uses: list[tuple[bool, int]]) -> None:
    pool = HostPool(capacity, 8)
    used: dict[int, None] = {}
    for putting, number in uses:
        here = number in used
        if putting:
            victim = pool.oldest()
            displaced = pool.put(key(number), block(number))
            if not here and len(used) == capacity and capacity:
                oldest = next(iter(used))
                assert displaced == key(oldest)
                assert victim is not None
                assert victim.key == key(oldest)
                del used[oldest]
            else:
                assert displaced is None
        else:
            found = pool.get(key(number))
            assert (found is not None) == here
            assert found is None or found.tolist() == block(number).tolist()
        if here or (putting and capacity):
            used.pop(number, None)
            used[number] = None
        pool.check_all()
    assert [name for name, _ in pool.items()] == [key(number) for number in reversed(used)]
    assert all(
        content.tolist() == block(number).tolist()
        for number, (_, content) in zip(reversed(used), pool.items(), strict=True)
    )


def test_emptied_host_memory_has_all_its_room_again() -> None:
    pool = HostPool(3, 8)
    for number in range(3):
        pool.put(key(number), block(number))
    assert sorted(pool.clear()) == [key(number) for number in range(3)]
    assert len(pool) == 0
    for number in range(4):
        pool.put(key(number), block(number))
    pool.check_all()
    assert len(pool) == 3


def test_a_block_of_another_size_is_refused() -> None:
    with pytest.raises(MemoryViolation, match="one size"):
        HostPool(2, 8).put(key(1), np.zeros(7, np.uint8))


def test_a_key_that_was_freed_twice_would_be_noticed() -> None:
    pool = HostPool(2, 8)
    pool.put(key(1), block(1))
    pool._free.append(0)
    with pytest.raises(MemoryViolation, match="free"):
        pool.check_all()


def test_a_place_in_host_memory_in_which_no_page_could_be_made_is_free_again() -> None:
    pool = HostPool(1, 8)
    place = pool.take()
    assert place is not None
    pool.settle(place, None)
    pool.check_all()
    assert pool.take() == place


@pytest.mark.parametrize("taken", range(4))
def test_rows_in_which_pages_were_being_made_are_free_once_nothing_is_made_any_more(taken: int) -> None:
    pool = HostPool(3, 8)
    pool.put(key(1), block(1))
    rows = [pool.take() for _ in range(taken)]  # the third takes the page's row
    kept = [each for each, _ in pool.items()]
    assert kept == [key(1)] * (taken < 3)
    pool.reclaim()
    pool.check_all()
    assert [each for each, _ in pool.items()] == kept
    assert len({pool.take() for _ in range(3)}) == 3
    assert None not in rows
