"""The one place that turns options into a prefix cache; the table of docs/caches.md is this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from memory.prefix.base import PrefixCache
from memory.prefix.chunk import ChunkCache
from memory.prefix.radix import RadixCache
from memory.prefix.sliding import SlidingCache
from memory.window import Windows

DEFAULT_POLICY = "lru"


class Wish(NamedTuple):
    """What a cache is made from."""

    page_size: int
    eviction: str
    windows: Windows | None


class Kind(NamedTuple):
    """A row of the table: which options give which cache."""

    options: str
    cache: type
    make: Callable[[Wish], PrefixCache]
    purpose: str


def _radix(wish: Wish) -> PrefixCache:
    return RadixCache(wish.page_size, wish.eviction)


def _sliding(wish: Wish) -> PrefixCache:
    if wish.windows is None:
        raise ValueError("a sliding cache needs window pages")
    return SlidingCache(wish.page_size, wish.windows, wish.eviction)


def _chunk(wish: Wish) -> PrefixCache:
    if wish.eviction != DEFAULT_POLICY:
        raise ValueError(f"the cache 'none' keeps nothing that {wish.eviction!r} could put into an order")
    return ChunkCache(wish.page_size)


KINDS: Mapping[str, Kind] = {
    "radix": Kind("`--cache radix`", RadixCache, _radix, "prompts share the pages of equal beginnings"),
    "sliding": Kind(
        "`--cache radix`, a model with sliding windows, and pages of their own for these (`--hybrid-pools`)",
        SlidingCache,
        _sliding,
        "the same, where a window behind the end of the match is alive",
    ),
    "none": Kind("`--cache none`", ChunkCache, _chunk, "every request computes all of its prompt"),
}
CACHES = ("radix", "none")
"""Names on the command line."""


def make_cache(
    name: str, page_size: int, windows: Windows | None = None, *, eviction: str = DEFAULT_POLICY
) -> PrefixCache:
    """The prefix cache called `name` for pages of `page_size` tokens, which have partners in `windows` where there is a
    second pool. Raises ValueError for an unknown name, and for options that would mean nothing together."""
    if name not in CACHES:
        raise ValueError(f"unknown prefix cache {name!r}; there are: {', '.join(CACHES)}")
    kind = KINDS["sliding" if name == "radix" and windows is not None else name]
    return kind.make(Wish(page_size, eviction, windows))


def table() -> Iterator[str]:
    """Which options give which cache, as lines of Markdown."""
    yield "| options | cache | what it is for |"
    yield "| --- | --- | --- |"
    for kind in KINDS.values():
        yield f"| {kind.options} | `{kind.cache.__name__}` | {kind.purpose} |"
