"""SGLang's RadixCache doing the work of `benchmarks.cache`. Started by it, in a process of its own.

    PYTHONPATH=<repository root> SGLANG_DIR=<folder with an unpacked sglang wheel>  python benchmarks/peers_sglang.py

The wheel is unpacked, not installed: its GPU libraries would not install on a machine without one. Modules that are
missing are replaced by placeholders, which is enough for the cache and the page allocator; nothing of SGLang that is
timed is replaced. A match of ours reads the pages that it found inside the timed part; SGLang's gathers its indices
later, which is not timed here. The last line printed is a JSON object: figure name -> microseconds, one value for each
repetition.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import types
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.cache import HOLD, MATCH, MATCH_INSERT, RELEASE, evict_name, offered_pages
from benchmarks.cache_workload import (
    EVICT_CALLS,
    EVICT_SIZES,
    EVICT_TOKENS,
    NUM_PROMPTS,
    PAGE,
    PROMPT,
    REPETITIONS,
    evict_repetitions,
    pages_to_hold,
    prompts,
    prompts_to_fill,
)
from benchmarks.harness import quiet, seconds_of

MOST_MISSING = 60


class Placeholder:
    """Stands for whatever a missing module would have: callable, subscriptable, a decorator, a base class."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __call__(self, *given: Any, **named: Any) -> Any:
        decorated = len(given) == 1 and not named and callable(given[0])
        return given[0] if decorated else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder()

    def __getitem__(self, _: Any) -> Any:
        return self

    def __or__(self, _: Any) -> Any:
        return self

    __ror__ = __or__

    def __mro_entries__(self, _: tuple[Any, ...]) -> tuple[type, ...]:
        return ()


class PlaceholderModule(types.ModuleType):
    """A module that has everything."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder()


class MissingModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives a placeholder for every module below the named top-level packages."""

    def __init__(self) -> None:
        self.packages: set[str] = set()

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return PlaceholderModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None: ...


def import_sglang(names: Sequence[str]) -> list[types.ModuleType]:
    """Import these modules of SGLang, with placeholders for what they need and the machine does not have."""
    sys.path.insert(0, os.environ["SGLANG_DIR"])
    for name in ("transformers", "torch._inductor.compile_fx"):
        importlib.import_module(name)  # Before placeholders exist: these look for what is installed.
    missing = MissingModules()
    sys.meta_path.append(missing)
    for _ in range(MOST_MISSING):
        try:
            return [importlib.import_module(name) for name in names]
        except ModuleNotFoundError as error:
            package = (error.name or "sglang").partition(".")[0]
            if package == "sglang" or package in missing.packages:
                raise
            missing.packages.add(package)
            for loaded in [name for name in sys.modules if name.partition(".")[0] == "sglang"]:
                del sys.modules[loaded]
    raise RuntimeError(f"more than {MOST_MISSING} packages are missing: {sorted(missing.packages)}")


_PREFIX = "sglang.srt.mem_cache"
BASE, PAGED, PARAMETERS, RADIX = import_sglang(
    [
        f"{_PREFIX}.base_prefix_cache",
        f"{_PREFIX}.allocator.paged",
        f"{_PREFIX}.cache_init_params",
        f"{_PREFIX}.radix_cache",
    ]
)


def make_cache(num_pages: int) -> tuple[Any, Any]:
    """An empty cache and its allocator."""
    allocator = PAGED.PagedTokenToKVPoolAllocator(num_pages * PAGE, PAGE, torch.bfloat16, "cpu", None, False)
    parameters = PARAMETERS.CacheInitParams(
        disable=False, req_to_token_pool=None, token_to_kv_pool_allocator=allocator, page_size=PAGE
    )
    return RADIX.RadixCache(parameters), allocator


def keys_of(count: int) -> list[array[int]]:
    """The prompts as SGLang takes them: arrays of 64-bit integers."""
    return [array("q", row.tolist()) for row in prompts(count)]


def basic_costs(keys: Sequence[array[int]], values: Sequence[torch.Tensor]) -> dict[str, float]:
    """Microseconds for each operation but eviction."""
    cache, _ = make_cache(pages_to_hold(len(keys)))
    nodes: list[Any] = []

    def match(key: array[int]) -> Any:
        return cache.match_prefix(BASE.MatchPrefixParams(key=RADIX.RadixKey(key)))

    def match_and_insert() -> None:
        for key, value in zip(keys, values, strict=True):
            match(key)
            cache.insert(BASE.InsertParams(key=RADIX.RadixKey(key), value=value))

    def match_all() -> None:
        for key in keys:
            nodes.append(match(key).last_device_node)

    def for_each_node(work: Callable[[Any], object]) -> Callable[[], None]:
        def loop() -> None:
            for node in nodes:
                work(node)

        return loop

    costs = {MATCH_INSERT: seconds_of(match_and_insert), MATCH: seconds_of(match_all)}
    assert match(keys[0]).device_prefix_len == PROMPT
    costs[HOLD] = seconds_of(for_each_node(cache.inc_lock_ref))
    costs[RELEASE] = seconds_of(for_each_node(cache.dec_lock_ref))
    return {name: seconds * 1e6 / len(keys) for name, seconds in costs.items()}


def evict_cost(keys: Sequence[array[int]]) -> float:
    """Microseconds to evict EVICT_TOKENS tokens from a full cache, allocator included."""
    cache, allocator = make_cache(pages_to_hold(len(keys)))
    # The allocator copies its whole free list whenever anything is freed: so take all at once, and free nothing here.
    every = allocator.alloc(pages_to_hold(len(keys)) * PAGE)
    end = 0
    with quiet():
        for key in keys:
            known = cache.match_prefix(BASE.MatchPrefixParams(key=RADIX.RadixKey(key))).device_prefix_len
            start = end - known  # What stands there for the known part is not looked at.
            end = start + PROMPT
            cache.insert(BASE.InsertParams(key=RADIX.RadixKey(key), value=every[start:end]))

    def evict() -> None:
        for _ in range(EVICT_CALLS):
            cache.evict(BASE.EvictParams(num_tokens=EVICT_TOKENS))

    before = cache.evictable_size()
    seconds = seconds_of(evict)
    assert before - cache.evictable_size() >= EVICT_CALLS * EVICT_TOKENS
    return seconds * 1e6 / EVICT_CALLS


def main() -> None:
    torch.set_num_threads(1)
    keys = keys_of(NUM_PROMPTS)
    tokens = torch.arange(PAGE)
    values = [(torch.from_numpy(row).long()[:, None] * PAGE + tokens).flatten() for row in offered_pages(NUM_PROMPTS)]
    repetitions = [basic_costs(keys, values) for _ in range(REPETITIONS + 1)][1:]
    measured = {name: [each[name] for each in repetitions] for name in repetitions[0]}
    for pages in EVICT_SIZES:
        keys = keys_of(prompts_to_fill(pages))
        measured[evict_name(pages)] = [evict_cost(keys) for _ in range(evict_repetitions(pages))]
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
