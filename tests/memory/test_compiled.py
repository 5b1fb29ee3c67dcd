"""The compiled core beside the Python cache: the same answers, the same state, the same events, whatever happens."""

from __future__ import annotations

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from random import Random
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from pawl.memory.arrays import Int32s
from pawl.memory.memory import Memory
from pawl.memory.prefix.base import Eviction, Hold, Insertion, PrefixCache
from pawl.memory.prefix.compiled import CompiledRadixCache
from pawl.memory.prefix.events import CacheEvent, Mirror
from pawl.memory.prefix.order import POLICIES
from tests.memory import test_events, test_memory_histories, test_namespace, test_order, test_radix
from tests.memory.observation import cache_content
from tests.memory.side_by_side import DEEDS, CompiledHold, Deed, MakeCache, SideBySide, random_deeds
from tests.memory.tree_model import MOVES, Move, TreeModel, array, play


@pytest.mark.parametrize("page_size", [1, 16, 64])
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=25)
@given(deeds=DEEDS)
def test_both_caches_do_the_same(policy: str, page_size: int, deeds: list[Deed]) -> None:
    SideBySide(page_size, policy, CompiledRadixCache).do(deeds)


class ForgetsFences(CompiledRadixCache):
    def release(self, hold: Hold, fence: int, used: bool = True) -> None:
        super().release(hold, 0, used)


class CountsAttempts(CompiledRadixCache):
    def release(self, hold: Hold, fence: int, used: bool = True) -> None:
        super().release(hold, fence)


class AllAreEqual(CompiledRadixCache):
    def match_and_hold(self, tokens: Int32s, namespace: str, priority: int = 0) -> CompiledHold:
        return super().match_and_hold(tokens, namespace)


class MixesNamespaces(CompiledRadixCache):
    def match_and_hold(self, tokens: Int32s, namespace: str, priority: int = 0) -> CompiledHold:
        return super().match_and_hold(tokens, "", priority)


class EvictsTooMuch(CompiledRadixCache):
    def evict(self, count: int) -> Eviction:
        return super().evict(count + (count > 0))


class EvictsInSilence(CompiledRadixCache):
    def evict(self, count: int) -> Eviction:
        events, self.events = self.events, None
        try:
            return super().evict(count)
        finally:
            self.events = events


class ForgetsTheHold(CompiledRadixCache):
    def insert(self, tokens: Int32s, pages: Int32s, namespace: str, hold: Hold | None, *rest: int) -> Insertion:
        return super().insert(tokens, pages, namespace, None, *rest)


class AnotherPolicy(CompiledRadixCache):
    def __new__(cls, page_size: int, eviction: str = "lru") -> AnotherPolicy:
        return super().__new__(cls, page_size, {"lfu": "priority", "priority": "lfu"}.get(eviction, eviction))


WRONG = (
    ForgetsFences,
    CountsAttempts,
    AllAreEqual,
    MixesNamespaces,
    EvictsTooMuch,
    EvictsInSilence,
    ForgetsTheHold,
    AnotherPolicy,
)


@pytest.mark.parametrize("defect", WRONG)
def test_a_planted_defect_is_caught(defect: MakeCache) -> None:
    def histories() -> None:
        for seed in range(30):
            SideBySide(1, ("lfu", "priority")[seed % 2], defect).do(random_deeds(Random(seed), 40))

    with pytest.raises(AssertionError):
        histories()


def test_a_node_with_many_children_and_a_long_life_loses_none() -> None:
    """The table of children through growth and many removals, with prompts that differ in one bit."""
    chance, pair = Random(5), SideBySide(1, "lru", CompiledRadixCache)
    for number in range(1500):
        tokens, page = array(chance.choice((0, 1, 7)), 1 << (number % 31), number // 31), array(3 * number)
        pages = np.arange(int(page[0]), int(page[0]) + 3, dtype=np.int32)

        def insert(cache: PrefixCache, _: int, tokens: Int32s = tokens, pages: Int32s = pages) -> Any:
            hold, adopted = cache.insert(tokens, pages, "", None, 0)
            cache.release(hold, 0)
            return adopted

        pair.both(insert)
        if chance.random() < 0.4:
            pair.both(lambda cache, _: cache.evict(4))
    pair.agree()
    pair.both(lambda cache, _: cache.evict(3000))
    pair.both(lambda cache, _: cache.reset())
    pair.agree()


def test_long_edges_are_cut_anywhere_and_nothing_of_them_is_lost() -> None:
    for seed in range(4):
        chance, pair = Random(seed), SideBySide(2, "lru", CompiledRadixCache)
        tokens, pages = np.arange(600, dtype=np.int32), np.arange(300, dtype=np.int32)
        pair.both(lambda cache, _, tokens=tokens, pages=pages: cache.insert(tokens, pages, "", None, 0))
        for cut in chance.sample(range(300), 60):
            pair.both(lambda cache, _, end=2 * cut, tokens=tokens: cache.match_and_hold(tokens[:end], ""))
        pair.agree()
        held = pair.compiled.match_and_hold(tokens, "")
        assert held.pages.tolist() == pages.tolist()


# ---- what is known of the reference holds for the compiled one ----


@pytest.mark.parametrize("page_size", [1, 16])
@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=15)
@given(moves=MOVES)
def test_it_agrees_with_a_search_through_all_leaves(policy: str, page_size: int, moves: list[Move]) -> None:
    cache, mirror = CompiledRadixCache(page_size, policy), Mirror(page_size)
    events: list[CacheEvent] = []
    cache.events = events
    for _ in play(cache, TreeModel(page_size, policy), moves):
        cache.check_all()
        mirror.replay(events)
        events.clear()
        assert mirror.content == cache.content()


def put_compiled(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tests of a module make compiled caches wherever they say RadixCache."""
    monkeypatch.setattr(module, "RadixCache", CompiledRadixCache)
    monkeypatch.setattr(module, "RadixHold", CompiledHold, raising=False)


OF_ITS_INSIDE = {"test_the_default_policy_keeps_no_books_on_nodes"}
"""These look at what only the Python cache has."""


def simple_tests(module: ModuleType) -> list[Any]:
    """Its tests that have no parameters but a cache's class from the module."""
    return [
        pytest.param(module, name, id=f"{module.__name__.rpartition('.')[2]}-{name.removeprefix('test_')}")
        for name, test in vars(module).items()
        if name.startswith("test_")
        and name not in OF_ITS_INSIDE
        and not hasattr(test, "pytestmark")
        and not hasattr(test, "hypothesis")
    ]


@pytest.mark.parametrize(
    ("module", "name"),
    [*simple_tests(test_radix), *simple_tests(test_order), *simple_tests(test_events), *simple_tests(test_namespace)],
)
def test_what_is_tested_of_the_python_cache_holds(
    module: ModuleType, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_compiled(module, monkeypatch)
    if module is test_radix:
        monkeypatch.setattr(module, "cache_content", lambda cache: cache_content(cache.reference()))
    getattr(module, name)()


class WatchedCache(CompiledRadixCache):
    """As in test_memory_histories.py."""

    last = Eviction(array(), 0)

    def evict(self, count: int) -> Eviction:
        self.last = super().evict(count)
        return self.last


class CompiledHistory(test_memory_histories.MemoryHistory):
    """A whole memory on top of the compiled cache."""

    def new_memory(self, num_pages: int, num_slots: int, context: int) -> Memory:
        self.cache: Any = WatchedCache(self.page_size)
        return Memory(num_pages=num_pages, num_slots=num_slots, max_context=context, cache=self.cache)


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_memory_with_it_goes_through_a_long_busy_history(page_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_memory_histories, "MemoryHistory", CompiledHistory)
    for seed in range(2):
        test_memory_histories.test_memory_and_reference_agree_through_a_long_busy_history(page_size, seed)


class StaleExtension(Loader):
    """An extension module that fails while it is loaded, as one does whose imports have moved."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure

    def exec_module(self, module: ModuleType) -> None:
        raise self._failure


class Finder(MetaPathFinder):
    """Finds the compiled core only."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self._loader) if fullname == "pawl.memory.prefix._radix" else None


@pytest.mark.parametrize(
    "failure",
    [
        ModuleNotFoundError("No module named 'pawl.memory.pages'", name="pawl.memory.pages"),
        AttributeError("module 'pawl.memory.page_pool' has no attribute 'MemoryViolation'"),
        SystemError("initialization of _radix raised unreported exception"),
    ],
)
def test_an_extension_built_from_older_sources_is_named_as_the_reason(
    failure: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "meta_path", [Finder(StaleExtension(failure)), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "pawl.memory.prefix._radix")
    source = importlib.util.find_spec("pawl.memory.prefix.compiled")
    assert source is not None
    assert source.loader is not None
    compiled = importlib.util.module_from_spec(source)
    source.loader.exec_module(compiled)
    with pytest.raises(compiled.CompiledUnavailable, match="built from other sources") as caught:
        compiled.CompiledRadixCache(16)
    assert str(failure) in caught.value.reason
