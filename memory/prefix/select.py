"""The one place that turns the name of a prefix cache into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memory.prefix.base import PrefixCache
from memory.prefix.chunk import ChunkCache
from memory.prefix.radix import RadixCache
from memory.prefix.sliding import SlidingCache
from memory.window import Windows

CACHES: Mapping[str, Callable[[int], PrefixCache]] = {"radix": RadixCache, "none": ChunkCache}
"""Name on the command line -> its class."""


def make_cache(name: str, page_size: int, windows: Windows | None = None) -> PrefixCache:
    """The prefix cache called `name` for pages of `page_size` tokens, which have partners in `windows` where there is a
    second pool. Raises ValueError for an unknown name."""
    if name not in CACHES:
        raise ValueError(f"unknown prefix cache {name!r}; there are: {', '.join(CACHES)}")
    if name == "radix" and windows is not None:
        return SlidingCache(page_size, windows)
    return CACHES[name](page_size)
