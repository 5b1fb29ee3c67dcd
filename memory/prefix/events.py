"""What a prefix cache tells about itself: events that, replayed from nothing, give its content again.

A page stands in one place of a cache, so the page is the name of a cached block: `Stored` hangs blocks below the page
`parent`, `Removed` takes them away, `Cleared` takes everything. Splits move nothing and are no events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from pawl.memory.arrays import Int32s
from pawl.memory.violation import MemoryViolation


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


class Block(NamedTuple):
    """Where a cached page stands, and what it holds."""

    namespace: str
    parent: int | None
    """The page before it; None for the first of a prompt."""
    tokens: tuple[int, ...]


Content: TypeAlias = dict[int, Block]
"""Page -> its block. Two caches with equal content find the same pages for every prompt."""


class Mirror:
    """The content of a cache, from its events alone: what an index outside of the engine would believe.

    Strict: an event that cannot follow those before it raises MemoryViolation, and so does a second block at the place
    of another one, as a prompt would then have two caches.
    """

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.content: Content = {}
        self._places: set[Block] = set()
        self._children: Counter[int] = Counter()
        """Blocks below each page."""

    def replay(self, events: Iterable[CacheEvent]) -> None:
        """Apply events, oldest first."""
        for event in events:
            match event:
                case Stored():
                    self._store(event)
                case Removed(pages):
                    self._remove(pages.tolist())
                case Cleared():
                    self.content.clear()
                    self._places.clear()
                    self._children.clear()

    def _store(self, event: Stored) -> None:
        pages, size, parent = event.pages.tolist(), self.page_size, event.parent
        if not pages or len(event.tokens) != len(pages) * size:
            raise MemoryViolation("whole pages are stored", num_tokens=len(event.tokens), num_pages=len(pages))
        if parent is not None:
            above = self.content.get(parent)
            if above is None or above.namespace != event.namespace:
                raise MemoryViolation("a page is stored below one of its namespace", parent=parent, event=event)
        tokens = event.tokens.tolist()
        for index, page in enumerate(pages):
            block = Block(event.namespace, parent, tuple(tokens[index * size : (index + 1) * size]))
            if page in self.content or block in self._places:
                raise MemoryViolation("a page, and a place, is taken once", page=page, block=block)
            self.content[page] = block
            self._places.add(block)
            if parent is not None:
                self._children[parent] += 1
            parent = page

    def _remove(self, pages: list[int]) -> None:
        for page in pages:
            block = self.content.pop(page, None)
            if block is None:
                raise MemoryViolation("what is removed was stored", page=page)
            self._places.remove(block)
            if block.parent is not None:
                self._children[block.parent] -= 1
        for page in pages:
            # All pages of one event leave at the same time, so only what is left after it can be out of reach.
            if self._children.pop(page, 0):
                raise MemoryViolation("a page never leaves before those below it", page=page)
