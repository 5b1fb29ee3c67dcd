"""The prefix cache of hybrid models: a radix tree over full pages, any of which may have lost its window page.

The windowed layers read only the end of a prefix, so a match needs living window pages there and nowhere else:

    cached:      p0 p1 p2 p3 p4 p5 p6      '·': a tombstone, its window page has left
    window page:  ·  ·  x  x  ·  x  x      a window that reaches back two pages: p0-p3 and p0-p6 match, p0-p5 does not

Whether a page is alive is a fact of the page and not of a node, so nothing in the tree changes when a window page
leaves or comes back, and eviction from either pool needs no search of the tree. The hold of a match keeps the full
path, as in the radix cache; the window pages at its end are kept by the row that uses them (`WindowPool.join`), and
only as long as its window covers them.

A prefix that ends in tombstones matches nothing and costs full pages. It is left alone all the same: both pools give
up first what was used longest ago, so such a prefix is already among the next to leave the full pool, and until then a
request with the same tokens brings it back to life. SGLang (Zheng et al. 2024) drops such leaves at once.

Events tell of full pages only. A tombstone is still content of the tree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pawl.memory.partners import NO_PAGE
from pawl.memory.prefix.node import Node, path_pages
from pawl.memory.prefix.radix import RadixCache
from pawl.memory.window_pool import WindowPool


class SlidingCache(RadixCache):
    """A radix cache whose matches end where the windowed layers can read on. Implements `PrefixCache`."""

    def __init__(self, page_size: int, windows: WindowPool, eviction: str = "lru") -> None:
        super().__init__(page_size, eviction)
        self._windows = windows

    def _usable(self, node: Node, num_pages: int) -> int:
        """The longest beginning of the path with living window pages at its end."""
        dead = self._windows.partners.of[path_pages(node)[:num_pages]] == NO_PAGE
        # last_dead[n]: one more than the index of the last tombstone among the first n pages, 0 when there is none.
        marks = np.concatenate(([0], np.where(dead, np.arange(1, num_pages + 1), 0)))
        last_dead = np.maximum.accumulate(marks)
        first_read = np.maximum(np.arange(num_pages + 1) - self._windows.behind, 0)
        return int(np.flatnonzero(last_dead <= first_read)[-1])

    def statistics(self) -> dict[str, Any]:
        """Those of the radix cache, and how many of its pages are tombstones."""
        statistics = super().statistics()
        return {**statistics, "tombstones": statistics["pages"] - self._windows.pool.cached}
