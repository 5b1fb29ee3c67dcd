"""SGLang's RadixCache doing the work of `benchmarks.cache`. Started by it, in a process of its own.

    PYTHONPATH=<repository root> SGLANG_DIR=<unpacked sglang wheel>  python benchmarks/peers_sglang.py <cached pages>

The wheel is unpacked, not installed: its GPU libraries would not install on a machine without one. Modules that are
missing are replaced by placeholders, which is enough for the cache and the page allocator; nothing of SGLang that is
timed is replaced. A match of ours reads the pages that it found inside the timed part; SGLang's gathers its indices
later, which is not timed here. Its match does not hold, so its lock is taken in the same timed part. Its eviction
gives back to the allocator by itself: there is no figure for the cache alone. The last line printed is a JSON object:
figure name -> microseconds, one value for each repetition.
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
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.cache_workload import (
    EVICT_ALL,
    EVICT_TOKENS,
    EVICTIONS,
    GROUP,
    MATCH,
    MATCH_INSERT,
    ONE_PAGE,
    OWN_PAGES,
    PAGE,
    PROMPT,
    RELEASE,
    SHARED,
    SHARED_PAGES,
    Int32s,
    Prompts,
    cpu_seconds,
    each,
    measure,
)

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


def key_of(tokens: Int32s) -> array[int]:
    """A prompt as SGLang takes it: an array of 64-bit integers."""
    return array("q", tokens.tolist())


class Peer:
    """SGLang's cache and allocator, filled."""

    def __init__(self, prompts: Prompts, pages: int) -> None:
        self._allocator = PAGED.PagedTokenToKVPoolAllocator(pages * PAGE, PAGE, torch.bfloat16, "cpu", None, False)
        parameters = PARAMETERS.CacheInitParams(
            disable=False, req_to_token_pool=None, token_to_kv_pool_allocator=self._allocator, page_size=PAGE
        )
        self._cache = RADIX.RadixCache(parameters)
        count = len(prompts)
        # The allocator copies its whole free list whenever anything is freed: so take all at once, and free nothing.
        every = self._allocator.alloc((count * OWN_PAGES + -(-count // GROUP) * SHARED_PAGES) * PAGE)
        end = 0
        for tokens in prompts.fill():
            key = key_of(tokens)
            start = end - self._match(key).device_prefix_len  # What stands for the known part is not looked at.
            end = start + PROMPT
            self._insert(key, every[start:end])
        assert end == len(every)
        assert self._cache.evictable_size() == end

    def find(self, prompts: Sequence[Int32s]) -> dict[str, float]:
        cache, nodes = self._cache, []

        def match(key: array[int]) -> None:
            node = self._match(key).last_device_node
            cache.inc_lock_ref(node)
            nodes.append(node)

        def one_page(key: array[int]) -> None:
            node = self._match(key).last_device_node
            cache.inc_lock_ref(node)
            cache.dec_lock_ref(node)

        keys = [key_of(tokens) for tokens in prompts]
        assert self._match(keys[0]).device_prefix_len == PROMPT
        seconds = {MATCH: cpu_seconds(each(match, keys)), RELEASE: cpu_seconds(each(cache.dec_lock_ref, nodes))}
        seconds[ONE_PAGE] = cpu_seconds(each(one_page, [key[:PAGE] for key in keys]))
        return {name: value / len(prompts) for name, value in seconds.items()}

    def turn(self, prompts: Sequence[Int32s]) -> dict[str, float]:
        fresh = self._allocator.alloc(len(prompts) * OWN_PAGES * PAGE).split(OWN_PAGES * PAGE)
        unread = torch.zeros(SHARED, dtype=torch.int64)

        def match_and_insert(offer: tuple[array[int], torch.Tensor]) -> None:
            key, value = offer
            node = self._match(key).last_device_node
            self._cache.inc_lock_ref(node)
            self._insert(key, value)
            self._cache.dec_lock_ref(node)

        def evict(num_tokens: int) -> None:
            self._cache.evict(BASE.EvictParams(num_tokens=num_tokens))

        offers = [(key_of(tokens), torch.cat((unread, own))) for tokens, own in zip(prompts, fresh, strict=True)]
        seconds = {MATCH_INSERT: cpu_seconds(each(match_and_insert, offers)) / len(prompts)}
        before = self._cache.evictable_size()
        seconds[EVICT_ALL] = cpu_seconds(each(evict, [EVICT_TOKENS] * EVICTIONS)) / EVICTIONS
        assert before - self._cache.evictable_size() >= EVICTIONS * EVICT_TOKENS
        return seconds

    def _match(self, key: array[int]) -> Any:
        return self._cache.match_prefix(BASE.MatchPrefixParams(key=RADIX.RadixKey(key)))

    def _insert(self, key: array[int], value: torch.Tensor) -> None:
        self._cache.insert(BASE.InsertParams(key=RADIX.RadixKey(key), value=value))


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps(measure({"": Peer}, int(sys.argv[1]))[""]))


if __name__ == "__main__":
    main()
