"""The one place that turns options into a prefix cache; the table of docs/caches.md is this one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from pawl.memory.prefix.base import PrefixCache
from pawl.memory.prefix.chunk import ChunkCache
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.prefix.sliding import SlidingCache
from pawl.memory.window_pool import WindowPool

DEFAULT_POLICY = "lru"
COMPILED_MODULE = "pawl.memory.prefix.compiled"
CORES = ("auto", "python", "compiled")
"""Names on the command line. `auto` is compiled where that is there and fits the other options."""


class CoreUnavailable(Exception):
    """The compiled core was asked for and cannot be used. `reason` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the compiled cache core cannot be used: {reason}")
        self.reason = reason


class Wish(NamedTuple):
    """What a cache is made from."""

    page_size: int
    eviction: str
    windows: WindowPool | None


class Kind(NamedTuple):
    """A row of the table: which options give which cache, and what goes together with it."""

    options: str
    cache: str
    """Name of its class."""
    make: Callable[[Wish], PrefixCache]
    purpose: str
    variant: bool = False
    """Other options choose it, not its name."""
    shares: bool = True
    """Prompts find pages of others in it."""
    ordered: bool = True
    """`--eviction` says which of its pages leave first, and lower tiers may follow its events."""
    windows: bool = False
    """It may stand beside a second pool, for layers with a window."""


def _radix(wish: Wish) -> PrefixCache:
    return RadixCache(wish.page_size, wish.eviction)


def _compiled(wish: Wish) -> PrefixCache:
    cache: PrefixCache = _load_compiled().CompiledRadixCache(wish.page_size, wish.eviction)
    return cache


def _sliding(wish: Wish) -> PrefixCache:
    if wish.windows is None:
        raise ValueError("a sliding cache needs window pages")
    return SlidingCache(wish.page_size, wish.windows, wish.eviction)


def _chunk(wish: Wish) -> PrefixCache:
    return ChunkCache(wish.page_size)


KINDS: dict[str, Kind] = {
    "radix": Kind("`--cache radix`", "RadixCache", _radix, "prompts share the pages of equal beginnings", windows=True),
    "compiled": Kind(
        "`--cache radix --cache-core compiled`, or `auto` where it was built",
        "CompiledRadixCache",
        _compiled,
        "the same, in less time",
        variant=True,
    ),
    "sliding": Kind(
        "`--cache radix`, a model with sliding windows, and pages of their own for these (`--hybrid-pools`)",
        "SlidingCache",
        _sliding,
        "the same, where a window behind the end of the match is alive",
        variant=True,
        windows=True,
    ),
    "none": Kind(
        "`--cache none`",
        "ChunkCache",
        _chunk,
        "every request computes all of its prompt",
        shares=False,
        ordered=False,
        windows=True,
    ),
}
"""The first is the one that is used unless told. Those that a user brings are added."""
CACHES = tuple(name for name, kind in KINDS.items() if not kind.variant)
"""Names on the command line."""


def make_cache(
    name: str,
    page_size: int,
    windows: WindowPool | None = None,
    *,
    eviction: str = DEFAULT_POLICY,
    core: str = "python",
) -> PrefixCache:
    """The prefix cache called `name` for pages of `page_size` tokens, which have partners in `windows` where there is a
    second pool.

    Raises ValueError for an unknown name and for options that would mean nothing together, and CoreUnavailable when
    `core` is `compiled` and that is not there.
    """
    if name not in KINDS or KINDS[name].variant:
        raise ValueError(f"unknown prefix cache {name!r}; there are: {', '.join(CACHES)}")
    if eviction != DEFAULT_POLICY and not KINDS[name].ordered:
        raise ValueError(f"the cache {name!r} keeps nothing that {eviction!r} could put into an order")
    if windows is not None and not KINDS[name].windows:
        raise ValueError(f"the cache {name!r} cannot stand beside a pool of window pages")
    kind = "sliding" if name == "radix" and windows is not None else name
    if choose_core(core, kind).name == "compiled":
        kind = "compiled"
    return KINDS[kind].make(Wish(page_size, eviction, windows))


class Core(NamedTuple):
    """Which implementation is used."""

    name: str
    """python or compiled"""
    reason: str = ""
    """Why it is not the compiled one, where that was wanted if possible and is not there."""


def choose_core(core: str, kind: str = "radix") -> Core:
    """The implementation that `core` means for this kind of cache. Raises what `make_cache` raises."""
    if core not in CORES:
        raise ValueError(f"unknown cache core {core!r}; there are: {', '.join(CORES)}")
    if kind != "radix":
        if core == "compiled":
            raise ValueError(f"there is no compiled core of the cache {KINDS[kind].cache}")
        return Core("python")
    if core == "python":
        return Core("python")
    try:
        _load_compiled()
    except CoreUnavailable as error:
        if core == "compiled":
            raise
        return Core("python", error.reason)
    return Core("compiled")


def _load_compiled() -> Any:
    """The module of the compiled core, with what it was compiled to. Raises CoreUnavailable."""
    try:
        module = importlib.import_module(COMPILED_MODULE)
    except ModuleNotFoundError as error:
        raise CoreUnavailable(f"{error.name} is not part of this installation") from error
    try:
        module.load()
    except module.CompiledUnavailable as error:
        raise CoreUnavailable(str(error)) from error
    return module


def table() -> Iterator[str]:
    """Which options give which cache, as lines of Markdown."""
    yield "| options | cache | what it is for |"
    yield "| --- | --- | --- |"
    for kind in KINDS.values():
        yield f"| {kind.options} | `{kind.cache}` | {kind.purpose} |"
