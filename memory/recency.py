"""Pages that may leave, least recently used first: arrays in, arrays out."""

from __future__ import annotations

from collections import deque

import numpy as np

from pawl.memory.arrays import Int32s


class PageOrder:
    """An order over pages 0 .. total-1. Every page is in it once or not at all; O(1) for each page, amortised.

    Pages come in groups, each an array stamped with its number. A page that leaves before its turn only loses its
    stamp; what is left of its group is found out when the group is looked at, or when too many of those have gathered.
    """

    __slots__ = ("_groups", "_latest", "_stamp", "_stored", "count")

    def __init__(self, total: int) -> None:
        self._stamp = np.zeros(total, np.int64)
        """Number of the group that each page waits in; 0 for a page that is not here."""
        self._groups: deque[tuple[int, Int32s]] = deque()
        self._latest = 0
        self._stored = 0
        self.count = 0
        """Pages that are here."""

    def push(self, pages: Int32s) -> None:
        """These distinct pages, none of which is here, were used just now; the first of them leaves first."""
        if not len(pages):
            return
        self._latest += 1
        self._stamp[pages] = self._latest
        self._groups.append((self._latest, pages))
        self.count += len(pages)
        self._stored += len(pages)
        if self._stored > 2 * len(self._stamp):
            self._compact()

    def remove(self, pages: Int32s) -> None:
        """Those of these distinct pages that are here may not leave any more, or have left."""
        self.count -= int(np.count_nonzero(self._stamp[pages]))
        self._stamp[pages] = 0

    def pop(self, count: int) -> Int32s:
        """Take out the `count` pages that were used longest ago, or all when there are fewer."""
        gone: list[Int32s] = []
        while count > 0 and self._groups:
            number, pages = self._groups.popleft()
            self._stored -= len(pages)
            left = pages[self._stamp[pages] == number]
            if len(left) > count:
                self._groups.appendleft((number, left[count:]))
                self._stored += len(left) - count
                left = left[:count]
            self.remove(left)
            gone.append(left)
            count -= len(left)
        return np.concatenate(gone) if gone else np.empty(0, np.int32)

    def members(self) -> Int32s:
        """The pages that are here, lowest first; O(total)."""
        return np.flatnonzero(self._stamp).astype(np.int32)

    def _compact(self) -> None:
        left = [(number, pages[self._stamp[pages] == number]) for number, pages in self._groups]
        self._groups = deque(group for group in left if len(group[1]))
        self._stored = self.count
