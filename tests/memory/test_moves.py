"""The moves of pages, compiled and in Python: the same columns, the same sums, the same refusals."""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

import numpy as np
import pytest

from pawl.memory import moves
from pawl.memory.arrays import Bools, Int32s, Int64s
from pawl.memory.digest import keys
from pawl.memory.memory import Memory
from pawl.memory.prefix.compiled import CompiledRadixCache
from pawl.memory.prefix.radix import RadixCache
from tests.memory.side_by_side import SideBySide

assert SideBySide, "whoever imports it is skipped where the compiled core was not built"

COMPILED = CompiledRadixCache.moves
TOTAL = 60


class Columns(NamedTuple):
    """Of a pool."""

    refcount: Int32s
    in_cache: Bools
    keys: Int64s


def columns(source: Random) -> Columns:
    """Free, owned and cached pages, the latter with and without rows."""
    refcount = np.array(source.choices((0, 1, 2), k=TOTAL), np.int32)
    in_cache = (refcount > 0) & np.array(source.choices((False, True), k=TOTAL))
    return Columns(refcount, in_cache, keys(7, TOTAL))


def outcome(implementation: moves.Moves, name: str, pages: Int32s, pool: Columns) -> tuple[Any, ...]:
    copy = Columns(*(column.copy() for column in pool))
    weight = getattr(implementation, name)(pages, *copy)
    return weight, *(column.tolist() for column in copy)


def suitable(name: str, pool: Columns) -> Int32s:
    where = {"take": pool.refcount == 0, "share": pool.in_cache, "adopt": (pool.refcount > 0) & ~pool.in_cache}[name]
    return np.flatnonzero(where).astype(np.int32)


@pytest.mark.parametrize("name", ["take", "share", "adopt"])
def test_both_move_the_same_pages(name: str) -> None:
    source, refused = Random(name), 0
    for _ in range(200):
        pool = columns(source)
        pages = suitable(name, pool).tolist()
        source.shuffle(pages)
        pages = pages[: source.randrange(len(pages) + 1)]
        if name != "take" and source.random() < 0.3:
            pages.insert(0, source.choice(sorted(set(range(TOTAL)) - set(suitable(name, pool).tolist()))))
        moved = np.array(pages, np.int32)
        wide = np.repeat(moved, 2)[::2]
        assert not wide.flags.contiguous or len(wide) < 2
        expected = outcome(moves, name, moved, pool)
        assert outcome(COMPILED, name, moved, pool) == outcome(COMPILED, name, wide, pool) == expected
        if expected[0] is None:
            refused += 1
            assert expected[1:] == tuple(column.tolist() for column in pool), "a refusal changes nothing"
        else:
            assert (expected[0] - sum(int(pool.keys[page]) for page in pages)) % (1 << 64) == 0
    assert (refused > 20) == (name != "take")


def test_both_see_the_same_worth() -> None:
    source = Random(0)
    for count in range(TOTAL):
        pages, places = np.array(source.sample(range(TOTAL), count), np.int32), keys(8, count)
        worth = moves.worth(pages, places, keys(7, TOTAL))
        assert COMPILED.worth(pages, places, keys(7, TOTAL)) == worth
        exact = sum(int(place) * int(keys(7, TOTAL)[page]) for page, place in zip(pages, places, strict=True))
        assert (worth - exact) % (1 << 64) == 0


@pytest.mark.parametrize("implementation", [moves, COMPILED], ids=["python", "compiled"])
@pytest.mark.parametrize("name", ["take", "share", "adopt", "worth"])
def test_pages_that_are_not_of_the_pool_are_refused(name: str, implementation: moves.Moves) -> None:
    pool = columns(Random(0))
    rest = (keys(8, 1), pool.keys) if name == "worth" else pool
    with pytest.raises(IndexError):
        getattr(implementation, name)(np.array([TOTAL], np.int32), *rest)


@pytest.mark.parametrize("name", ["take", "share", "adopt", "worth"])
def test_the_compiled_ones_refuse_what_is_no_column(name: str) -> None:
    pool = columns(Random(0))
    pages, move = np.zeros(1, np.int32), getattr(COMPILED, name)
    good: list[Any] = [pages, keys(8, 1), pool.keys] if name == "worth" else [pages, *pool]
    with pytest.raises(TypeError):
        move(*good[:-1])
    for place in range(len(good)):
        for wrong in (good[place].astype(np.float32), good[place].reshape(1, -1), good[place].tolist()):
            with pytest.raises((TypeError, BufferError)):
                move(*good[:place], wrong, *good[place + 1 :])
    if name == "worth":
        with pytest.raises(ValueError, match="places"):
            move(pages, keys(8, 2), pool.keys)
    else:
        pool.refcount.flags.writeable = False
        with pytest.raises((ValueError, BufferError)):
            move(*good)


def test_negative_pages_are_no_pages() -> None:
    with pytest.raises(IndexError):
        COMPILED.take(np.array([-1], np.int32), *columns(Random(0)))


def test_a_compiled_cache_brings_them_along() -> None:
    for cache, expected in ((RadixCache(16), moves), (CompiledRadixCache(16), COMPILED)):
        memory = Memory(num_pages=8, num_slots=2, max_context=64, cache=cache)
        assert memory.pages.moves is expected
    assert COMPILED is not moves
