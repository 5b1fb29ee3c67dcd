"""What a prefix cache tells about itself: events that, replayed from nothing, give its content again.

A page stands in one place of a cache, so the page is the name of a cached block: `Stored` hangs blocks below the page
`parent`, `Removed` takes them away, `Cleared` takes everything. Splits move nothing and are no events.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from memory.pages import Int32s


class Stored(NamedTuple):
    """`pages` hold the keys and values of `tokens` (page_size of them each), one block after the other."""

    namespace: str
    parent: int | None
    """The page before the first of `pages`; None at the beginning of a prompt."""
    tokens: Int32s
    """int32 [len(pages) * page_size]"""
    pages: Int32s


class Removed(NamedTuple):
    """These pages are not in the cache any more. A page never leaves before those below it."""

    pages: Int32s


class Cleared(NamedTuple):
    """The cache is empty."""


CacheEvent: TypeAlias = Stored | Removed | Cleared
