"""The prefix cache of hybrid models: a radix tree over full pages, any of which may have lost its window page.

The windowed layers read only the end of a prefix, so a match needs living window pages there and nowhere else:

    cached:      p0 p1 p2 p3 p4 p5 p6      '·': a tombstone, its window page has left
    window page:  ·  ·  x  x  ·  x  x      a window that reaches back two pages: p0-p3 and p0-p6 match, p0-p5 does not

Whether a page is alive is a fact of the page and not of a node, so nothing in the tree changes when a window page
leaves or comes back, and eviction from either pool needs no search of the tree. The hold of a match keeps the full
path, as in the radix cache; the window pages at its end are kept by the row that refers to them (`Windows.join`), and
only as long as its window covers them.

A prefix that ends in tombstones matches nothing and costs full pages. It is left alone all the same: both pools give
up first what was used longest ago, so such a prefix is already among the next to leave the full pool, and until then a
request with the same tokens brings it back to life. SGLang (Zheng et al. 2024) drops such leaves at once.

Events tell of full pages only. A tombstone is still content of the tree.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memory.prefix.node import Node
from memory.prefix.radix import RadixCache, path_pages
from memory.window import NO_PAGE, Windows


class SlidingCache(RadixCache):
    """A radix cache whose matches end where the windowed layers can read on. Implements `PrefixCache`."""

    def __init__(self, page_size: int, windows: Windows) -> None:
        super().__init__(page_size)
        self._windows = windows

    def _usable(self, node: Node, num_pages: int) -> tuple[Node, int]:
        """The longest beginning of the path to `node`, `num_pages` long, with living window pages at its end."""
        behind = self._windows.behind
        alive = self._windows.partner[path_pages(node)] != NO_PAGE
        # last_dead[n]: index of the last tombstone among the first n pages, -1 when there is none.
        last_dead = np.maximum.accumulate(np.concatenate(([-1], np.where(alive, -1, np.arange(num_pages)))))
        lengths = np.arange(num_pages + 1)
        usable = int(np.flatnonzero(last_dead < np.maximum(lengths - behind, 0))[-1])
        while node.parent is not None and num_pages - len(node.pages) >= usable:
            num_pages -= len(node.pages)
            node = node.parent
        if num_pages > usable:
            node = self._split(node, usable - (num_pages - len(node.pages)))
        return node, usable

    def statistics(self) -> dict[str, Any]:
        """Those of the radix cache, and how many of its pages are tombstones."""
        statistics = super().statistics()
        return {**statistics, "tombstones": statistics["pages"] - self._windows.pool.cached}
