"""What every prefix cache does: find pages that already hold the keys and values of a prompt's beginning.

Keys are whole pages of token ids under a namespace. A match and its hold are one operation, so nothing can be evicted
in between. A cache never frees a page itself: `evict` names pages, the pool gives them back.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from pawl.memory.arrays import Int32s
from pawl.memory.prefix.events import CacheEvent, Content


class Hold(Protocol):
    """A matched prefix that cannot be evicted until it is released."""

    @property
    def num_tokens(self) -> int:
        """Length of the match in tokens, a multiple of the page size."""

    @property
    def pages(self) -> Int32s:
        """Its pages in order, int32 [num_tokens / page_size]."""


class Insertion(NamedTuple):
    """Result of `insert`."""

    hold: Hold
    """Holds the whole inserted prefix, in place of the hold that was handed in."""
    adopted: Int32s
    """Those of the offered pages that the cache now refers to; for the others it already had pages of its own."""


class Eviction(NamedTuple):
    """Pages that left the cache, and the newest step that may still touch them."""

    pages: Int32s
    fence: int


class PrefixCache(Protocol):
    """See the module. All lengths are in whole pages; a partial last page is never cached."""

    page_size: int
    events: list[CacheEvent] | None
    """What has changed since somebody took them out; None: nobody listens."""

    @property
    def evictable(self) -> int:
        """Pages that `evict` could give back now."""

    @property
    def held(self) -> int:
        """Pages of held nodes."""

    def match_and_hold(self, tokens: Int32s, namespace: str, priority: int = 0) -> Hold:
        """Hold the longest cached prefix of `tokens`, int32 [n]. O(n). `priority`: of the request."""

    def insert(
        self, tokens: Int32s, pages: Int32s, namespace: str, hold: Hold | None, fence: int, priority: int = 0
    ) -> Insertion:
        """Offer the pages that hold `tokens` (len(tokens) = len(pages) * page_size). Releases `hold`. O(n)."""

    def release(self, hold: Hold, fence: int, used: bool = True) -> None:
        """Let go. `fence`: newest step that may still touch the pages; `used`: whether the request went on with them.

        Raises MemoryViolation for a hold that was released before, or that another cache gave.
        """

    def evict(self, count: int) -> Eviction:
        """Drop up to `count` unheld pages, or more when a victim is larger; which, says the policy."""

    def reset(self) -> Eviction:
        """Drop everything; refused with MemoryViolation while anything is held."""

    def statistics(self) -> dict[str, Any]:
        """Counts since start: matches, hit and missed tokens, insertions, evictions, nodes, pages."""

    def content(self) -> Content:
        """What replaying every event since start gives: each page and where it stands. O(size)."""

    def check_all(self) -> None:
        """Every property of the structure, O(size). Raises MemoryViolation."""
