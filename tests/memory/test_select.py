"""The choice between caches, and the page that tells of it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from pawl.memory.prefix.order import POLICIES, RankedOrder, RecencyOrder
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.prefix.select import (
    CACHES,
    COMPILED_MODULE,
    CORES,
    KINDS,
    Core,
    CoreUnavailable,
    choose_core,
    make_cache,
    table,
)
from pawl.memory.prefix.sliding import SlidingCache
from pawl.memory.transaction import Ledger
from pawl.memory.window_pool import WindowPool

PAGE = Path(__file__).parents[2] / "docs" / "caches.md"


@pytest.mark.parametrize("eviction", POLICIES)
def test_a_radix_cache_evicts_by_the_policy_it_is_given(eviction: str) -> None:
    cache = make_cache("radix", 16, eviction=eviction)
    assert isinstance(cache, RadixCache)
    assert isinstance(cache._order, RecencyOrder if eviction == "lru" else RankedOrder)


def test_options_that_mean_nothing_together_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown eviction policy 'lifo'"):
        make_cache("radix", 16, eviction="lifo")
    with pytest.raises(ValueError, match="the cache 'none' keeps nothing that 'fifo' could put into an order"):
        make_cache("none", 16, eviction="fifo")


class Unavailable(Exception):
    """As the compiled core raises it."""


class FakeCompiled(RadixCache):
    """Stands for the compiled cache."""


def install(monkeypatch: pytest.MonkeyPatch, problem: str = "") -> None:
    """Put a compiled core where the real one would be: one that works, or that says why it does not."""

    def load() -> None:
        if problem:
            raise Unavailable(problem)

    module = ModuleType(COMPILED_MODULE)
    vars(module).update(load=load, CompiledUnavailable=Unavailable, CompiledRadixCache=FakeCompiled)
    monkeypatch.setitem(sys.modules, COMPILED_MODULE, module)


@pytest.mark.parametrize("core", ["auto", "compiled"])
def test_a_compiled_core_that_is_there_is_used(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    cache = make_cache("radix", 16, eviction="lfu", core=core)
    assert isinstance(cache, FakeCompiled)
    assert isinstance(cache._order, RankedOrder)
    assert type(make_cache("radix", 16, core="python")) is RadixCache
    assert choose_core(core) == Core("compiled")


@pytest.mark.parametrize("problem", ["not built", "missing"])
def test_a_compiled_core_that_is_not_there_is_named_with_the_reason(
    problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, "no compiler was found")
    reason = "no compiler was found"
    if problem == "missing":
        monkeypatch.setitem(sys.modules, COMPILED_MODULE, None)
        reason = "pawl.memory.prefix.compiled is not part of this installation"
    assert type(make_cache("radix", 16, core="auto")) is RadixCache
    assert choose_core("auto") == Core("python", reason)
    with pytest.raises(CoreUnavailable, match=reason):
        make_cache("radix", 16, core="compiled")


def test_only_the_radix_cache_has_a_compiled_core() -> None:
    assert choose_core("auto", "none") == choose_core("auto", "sliding") == Core("python")
    for name, windows in (("none", None), ("radix", some_windows())):
        with pytest.raises(ValueError, match=r"no compiled core of the cache (ChunkCache|SlidingCache)"):
            make_cache(name, 16, windows, core="compiled")
    with pytest.raises(ValueError, match="unknown cache core 'rust'"):
        choose_core("rust")


def some_windows() -> WindowPool:
    return WindowPool(Ledger(), num_pages=4, num_full=4, num_slots=1, page_size=16, window=16, chunk=16, max_context=64)


def test_a_second_pool_makes_the_cache_a_sliding_one_with_any_policy() -> None:
    cache = make_cache("radix", 16, some_windows(), eviction="fifo", core="auto")
    assert isinstance(cache, SlidingCache)
    assert isinstance(cache._order, RankedOrder)


def test_the_page_about_caches_has_the_table_of_the_code_and_every_policy() -> None:
    text = PAGE.read_text()
    assert "\n\n" + "\n".join(table()) + "\n\n" in text
    assert set(CACHES) <= set(KINDS)
    for name in CACHES:
        assert f"`--cache {name}`" in text
    for core in CORES:
        assert f"`{core}`" in text
    section = text.partition("`--eviction`")[2].partition("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("| `")]
    assert rows == [f"`{policy}`" for policy in POLICIES]
