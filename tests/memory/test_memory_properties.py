"""The fourteen properties of memory, one class each, with a canary: a planted violation that its own test reports.

Properties 1-9, 11 and 12 hold through random histories of every verb (every_verb.py); their predicates, in words of
their own, are in properties.py. Properties 10, 13 and 14 are about the loop: test_memory_properties_of_the_loop.py.
More about some of them:

    3   moves against the property are refused: test_page_pool.py
    7   every property of the tree: test_radix.py, test_order.py
    9   every operation of a step fails once: test_memory_failures.py; what the digest sees: test_digest.py
    all each property broken by hand is named by `check_all()`: test_checks.py
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import pytest

from pawl.memory.arrays import Int32s
from pawl.memory.escrow import Escrow
from pawl.memory.memory import Memory
from pawl.memory.page_pool import PagePool
from pawl.memory.page_table import PageTable
from pawl.memory.prefix.base import Hold
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.transaction import Ledger
from pawl.memory.violation import MemoryViolation
from tests.memory.every_verb import play, random_program
from tests.memory.properties import STATEMENTS, Checked, CheckedWithoutCache

SEEDS = range(6)
TURNS = 25


class MemoryProperty:
    """What every property's class says: its number, and a verb that breaks it."""

    number: int
    defect: tuple[object, str, object]

    @pytest.mark.parametrize("kind", [Checked, CheckedWithoutCache])
    def test_holds_after_every_move(self, kind: type[Checked]) -> None:
        assert all(history.num_checked > TURNS for history in self.histories(kind))

    def test_its_canary_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(*self.defect)
        with pytest.raises((AssertionError, MemoryViolation)):
            self.histories(Checked)

    def histories(self, kind: type[Checked]) -> list[Checked]:
        """Played to their ends under this property."""
        return [play(random_program(seed, TURNS), kind(self.number)) for seed in SEEDS]


def _undefer_and_lose_one(pool: PagePool, pages: Int32s, waited: int) -> None:
    pool.deferred -= len(pages)
    pool._digest.value -= waited
    pool._push(pages[1:])


class TestProperty01Conservation(MemoryProperty):
    __doc__ = STATEMENTS[1]
    number = 1
    defect = (PagePool, "_undefer", _undefer_and_lose_one)


def _push_the_first_only(pool: PagePool, pages: Int32s) -> None:
    pool._free_stack[pool.free : pool.free + len(pages)] = pages[:1]
    pool.free += len(pages)


class TestProperty02NoPageIsFreeTwice(MemoryProperty):
    __doc__ = STATEMENTS[2]
    number = 2
    defect = (PagePool, "_push", _push_the_first_only)


class TestProperty03References(MemoryProperty):
    __doc__ = STATEMENTS[3]
    number = 3
    defect = (PagePool, "share", lambda *_: 0)


def _share_what_is_not_full(original: Callable[..., None]) -> Callable[..., None]:
    def share(memory: Memory, slot: int, tokens: Int32s, namespace: str) -> None:
        size = memory.page_size
        if len(tokens) and int(memory.page_table.num_pages[slot]) > len(tokens) // size:
            tokens = np.concatenate((tokens, np.zeros(size, np.int32)))
        original(memory, slot, tokens, namespace)

    return share


class TestProperty04OneWriter(MemoryProperty):
    __doc__ = STATEMENTS[4]
    number = 4
    defect = (Memory, "share_prefix", _share_what_is_not_full(Memory.share_prefix))


class TestProperty05Generations(MemoryProperty):
    __doc__ = STATEMENTS[5]
    number = 5
    defect = (PagePool, "_age", lambda *_: None)


def _cut_pages_only(rows: PageTable, slots: Int32s, num_pages: Int32s, lengths: Int32s) -> None:
    rows.num_pages[slots] = num_pages


class TestProperty06RowsFit(MemoryProperty):
    __doc__ = STATEMENTS[6]
    number = 6
    defect = (PageTable, "cut", _cut_pages_only)


class TestProperty07Holds(MemoryProperty):
    __doc__ = STATEMENTS[7]
    number = 7
    defect = (RadixCache, "release", lambda *_, **__: None)


class TestProperty08Promises(MemoryProperty):
    __doc__ = STATEMENTS[8]
    number = 8
    defect = (Memory, "_allows", lambda *_: True)


class TestProperty09Rollback(MemoryProperty):
    __doc__ = STATEMENTS[9]
    number = 9
    defect = (Escrow, "restore", lambda *_: None)

    def test_digests_were_compared(self) -> None:
        assert sum(history.num_compared for history in self.histories(Checked)) > 10 * len(SEEDS)


class TestProperty11Fences(MemoryProperty):
    __doc__ = STATEMENTS[11]
    number = 11
    defect = (Ledger, "fence", property(lambda ledger: ledger.resolved))


class TestProperty12MatchAndHold:
    __doc__ = STATEMENTS[12]

    def evict_after_match(self, seed: int) -> tuple[Hold, Int32s, Int32s]:
        """What a match found, and all that can be evicted right after it."""
        chance, cache = Random(seed), RadixCache(1)
        page = 0
        for _ in range(10):
            tokens = np.array([chance.randrange(3) for _ in range(chance.randint(1, 6))], np.int32)
            pages = np.arange(page, page + len(tokens), dtype=np.int32)
            page += len(tokens)
            cache.release(cache.insert(tokens, pages, "", None, 0).hold, 0)
        hold = cache.match_and_hold(np.array([chance.randrange(3) for _ in range(6)], np.int32), "")
        found = hold.pages.copy()
        return hold, found, cache.evict(cache.evictable + len(found)).pages

    def test_nothing_that_was_matched_can_leave_before_it_is_let_go(self) -> None:
        found = [self.evict_after_match(seed) for seed in range(50)]
        assert sum(len(pages) for _, pages, _ in found) > 50
        assert not any(np.isin(pages, evicted).any() for _, pages, evicted in found)

    def test_its_canary_is_reported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        match = RadixCache.match_and_hold

        def without_hold(cache: RadixCache, tokens: Int32s, namespace: str, priority: int = 0) -> Hold:
            hold = match(cache, tokens, namespace, priority)
            assert len(hold.pages) >= 0, "a hold knows its pages as long as it is held"
            cache.release(hold, 0)
            hold.released = False
            return hold

        monkeypatch.setattr(RadixCache, "match_and_hold", without_hold)
        with pytest.raises(AssertionError):
            self.test_nothing_that_was_matched_can_leave_before_it_is_let_go()


def test_every_property_has_its_place() -> None:
    here = {int(name[len("TestProperty") :][:2]) for name in globals() if name.startswith("TestProperty")}
    assert here | {10, 13, 14} == set(STATEMENTS)


def test_a_step_writes_entries_that_the_property_of_one_writer_can_see() -> None:
    history = play(random_program(0, TURNS), Checked(4))
    assert any(pages for step in history.writes.values() for pages in step.values())
