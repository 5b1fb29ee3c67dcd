"""The one place that turns the name of a prefix cache into one."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from memory.prefix.base import PrefixCache
from memory.prefix.chunk import ChunkCache
from memory.prefix.radix import RadixCache

CACHES: Mapping[str, Callable[[int], PrefixCache]] = {"radix": RadixCache, "none": ChunkCache}
"""Name on the command line -> its class."""


def make_cache(name: str, page_size: int) -> PrefixCache:
    """The prefix cache called `name` for pages of `page_size` tokens. Raises ValueError for an unknown name."""
    if name not in CACHES:
        raise ValueError(f"unknown prefix cache {name!r}; there are: {', '.join(CACHES)}")
    return CACHES[name](page_size)
