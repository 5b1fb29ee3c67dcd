"""No sharing between requests: what `--cache none` stands for.

A request that is prefilled in chunks finds its earlier pages in its own row of the page table, so nothing is lost but
the reuse of one request's pages by another.
"""

from __future__ import annotations

from typing import Any

from pawl.memory.arrays import NO_PAGES, Int32s
from pawl.memory.prefix.base import Eviction, Hold, Insertion
from pawl.memory.prefix.events import CacheEvent, Content
from pawl.memory.violation import MemoryViolation


class EmptyHold:
    """Holds nothing; given out so that every request is handled alike."""

    __slots__ = ("owner", "released")

    num_tokens = 0
    pages = NO_PAGES

    def __init__(self, owner: ChunkCache) -> None:
        self.owner = owner
        self.released = False


class ChunkCache:
    """A prefix cache that finds nothing and keeps nothing. Implements `PrefixCache`."""

    evictable = 0
    held = 0

    def __init__(self, page_size: int) -> None:
        if page_size < 1:
            raise ValueError(f"a page holds at least one token, not {page_size}")
        self.page_size = page_size
        self.events: list[CacheEvent] | None = None
        """Nothing ever happens."""
        self._num_holds = 0
        self._counts = {"matches": 0, "missed_tokens": 0}

    def match_and_hold(self, tokens: Int32s, namespace: str, priority: int = 0) -> EmptyHold:
        """Nothing is found."""
        self._counts["matches"] += 1
        self._counts["missed_tokens"] += len(tokens)
        self._num_holds += 1
        return EmptyHold(self)

    def insert(
        self, tokens: Int32s, pages: Int32s, namespace: str, hold: Hold | None, fence: int, priority: int = 0
    ) -> Insertion:
        """No page is adopted."""
        if hold is not None:
            self.release(hold, fence)
        self._num_holds += 1
        return Insertion(EmptyHold(self), NO_PAGES)

    def release(self, hold: Hold, fence: int, used: bool = True) -> None:
        """Let go of a hold, once."""
        if not isinstance(hold, EmptyHold) or hold.released or hold.owner is not self:
            raise MemoryViolation("a hold is released once, to the cache that gave it", num_tokens=hold.num_tokens)
        hold.released = True
        self._num_holds -= 1

    def evict(self, count: int) -> Eviction:
        """There is nothing to give back."""
        return Eviction(NO_PAGES, 0)

    def reset(self) -> Eviction:
        """Already empty. Its holds hold nothing, so none stands in the way."""
        return Eviction(NO_PAGES, 0)

    def statistics(self) -> dict[str, Any]:
        """The same names as the radix cache where they mean something."""
        return {**self._counts, "hit_tokens": 0, "holds": self._num_holds, "nodes": 0, "pages": 0}

    def content(self) -> Content:
        """There is none."""
        return {}

    def check_all(self) -> None:
        """Holds given out are not released more often than that."""
        if self._num_holds < 0:
            raise MemoryViolation("a hold is released once", holds=self._num_holds)
