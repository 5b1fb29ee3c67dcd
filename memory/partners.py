"""Which window page belongs to which full page, both ways, with what each pair adds to the digest.

full page        0    1    2    3    4    5
of            [  ·    3    0    ·    5    ·  ]      '·' is NO_PAGE: full pages 0, 3 and 5 are tombstones
full_page     [  2    -    -    1    -    4  ]      by window page; '-' means nothing, as that page has no owner
"""

from __future__ import annotations

import numpy as np

from pawl.memory.arrays import Int32s
from pawl.memory.digest import Digest
from pawl.memory.violation import MemoryViolation

NO_PAGE = -1
"""What the worker's table says where a full page has no partner."""


class Partners:
    """`of`: the window page of each full page, int32 [num_full], NO_PAGE for a tombstone; `full_page`: the full page of
    each window page that is in use, int32 [num_window]."""

    __slots__ = ("_digest", "_full_keys", "_window_keys", "full_page", "of")

    def __init__(self, digest: Digest, num_full: int, num_window: int) -> None:
        self.of: Int32s = np.full(num_full, NO_PAGE, np.int32)
        self.full_page: Int32s = np.zeros(num_window, np.int32)
        self._digest = digest
        self._full_keys, self._window_keys = digest.keys(num_full), digest.keys(num_window)

    def pair(self, pages: Int32s, window: Int32s) -> None:
        """Full pages that are tombstones get these partners."""
        self.of[pages] = window
        self.full_page[window] = pages
        self._digest.value += self.worth(pages, window)

    def part(self, pages: Int32s) -> None:
        """These full pages are tombstones from now on, those that were none already."""
        self._digest.value -= self.worth(pages, self.of[pages])
        self.of[pages] = NO_PAGE

    def existing(self, pages: Int32s) -> Int32s:
        """Window pages of those full pages that have one."""
        window = self.of[pages]
        existing: Int32s = window[window != NO_PAGE]
        return existing

    def living(self, pages: Int32s) -> Int32s:
        """Window pages of full pages that must have one, int32 [n]. Raises MemoryViolation."""
        window: Int32s = self.of[pages]
        if (window == NO_PAGE).any():
            raise MemoryViolation("a row refers to living window pages", dead=pages[window == NO_PAGE])
        return window

    def worth(self, pages: Int32s, window: Int32s) -> int:
        """What these pairs add to the digest: nothing where there is no partner."""
        full = self._full_keys.take(pages) * (window != NO_PAGE)
        return int(full.dot(self._window_keys.take(window)))

    def recompute(self) -> int:
        """What all pairs add to the digest, O(size)."""
        return self.worth(np.arange(len(self.of), dtype=np.int32), self.of)
