"""The ghost's pages: for every position a token, where it stands, and a hash of everything up to it.

    store.data  uint64 [pages, page_size, 2]
                                          |
                                          0 tag: (position + 1) << 32 | token; 0 was never written
                                          1 prefix: sum of mix64(tag) over this position and all before it

An entry thus follows from the one before it and its own tag: whether a row of pages holds one sequence, whole and in
order, can be seen from the pages alone. A sum and not a chain, because a sum over a long chunk is one numpy call.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.sampling.mixing import UInt64s, mix64

Int32s: TypeAlias = NDArray[np.int32]
Int64s: TypeAlias = NDArray[np.int64]

_POSITION_BITS = np.uint64(32)


def tags_of(positions: Int32s, tokens: Int32s) -> UInt64s:
    """One word for each (position, token), never 0."""
    return ((positions.astype(np.uint64) + np.uint64(1)) << _POSITION_BITS) | tokens.astype(np.uint64)


class GhostStore:
    """Pages of entries, and the sum of each page's prefixes, so that a row of pages is read page by page."""

    def __init__(self, num_pages: int, page_size: int) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.data: UInt64s = np.zeros((num_pages, page_size, 2), np.uint64)
        self.sums: UInt64s = np.zeros(num_pages, np.uint64)
        """Sum of each page's prefixes, modulo 2^64; follows from `data`."""
        self._offsets = np.arange(page_size, dtype=np.int32)

    @property
    def page_bytes(self) -> int:
        return self.page_size * 16

    def clear(self) -> None:
        """Nothing was ever written."""
        self.data[:] = 0
        self.sums[:] = 0

    def write(self, pages: Int32s, positions: Int32s, tags: UInt64s, prefixes: UInt64s) -> None:
        """Entries for positions of some rows, in the page of each, all [t]."""
        offsets = positions % self.page_size
        self.data[pages, offsets, 0] = tags
        self.data[pages, offsets, 1] = prefixes
        # A page's last entry in this call is where the page or the run of positions ends.
        last = np.ones(len(pages), np.bool_)
        np.not_equal(pages[:-1], pages[1:], out=last[:-1])
        self.refresh(pages[last])

    def refresh(self, pages: Int32s) -> None:
        """Make the sums of `pages` follow from their entries."""
        self.sums[pages] = self.data[pages, :, 1].sum(axis=1)

    def entries(self, pages: Int32s, positions: Int32s) -> UInt64s:
        """[t, 2]: tag and prefix of each position, from the page of each."""
        return self.data[pages, positions % self.page_size]

    def begin_at(self, pages: Int32s, page_indices: Int32s) -> NDArray[np.bool_]:
        """Whether each of `pages` begins with the position that page `page_indices` of a row begins with."""
        positions = page_indices.astype(np.uint64) * np.uint64(self.page_size)
        begins: NDArray[np.bool_] = (self.data[pages, 0, 0] >> _POSITION_BITS) == positions + np.uint64(1)
        return begins

    def partial_sums(self, pages: Int32s, counts: Int32s) -> UInt64s:
        """Sum of the prefixes of the first counts[i] entries of pages[i], uint64 [n]."""
        used = self._offsets < counts[:, None]
        sums: UInt64s = np.where(used, self.data[pages, :, 1], np.uint64(0)).sum(axis=1)
        return sums

    def read(self, pages: Int32s) -> NDArray[np.uint8]:
        """Copies of pages, uint8 [n, page_bytes]. Raises IndexError for a page that does not exist."""
        return self.data[pages].view(np.uint8).reshape(len(pages), self.page_bytes)

    def fill(self, pages: Int32s, blocks: NDArray[np.uint8]) -> None:
        """The inverse of `read`. Raises ValueError, with nothing written, for blocks of another shape."""
        expected = (len(pages), self.page_bytes)
        if blocks.dtype != np.uint8 or blocks.shape != expected:
            raise ValueError(f"blocks are {blocks.dtype} {blocks.shape} where uint8 {expected} is needed")
        words = np.ascontiguousarray(blocks).view(np.uint64)
        self.data[pages] = words.reshape(len(pages), self.page_size, 2)
        self.refresh(pages)


def first_break(entries: UInt64s, salt: int) -> int | None:
    """The first of consecutive entries [n, 2] from position 0 on, of weights with this salt, that does not follow from
    those before it."""
    tags, prefixes = entries[:, 0], entries[:, 1]
    # The positions are in the tags: entries from elsewhere do not add up.
    broken = np.cumsum(mix64(tags), dtype=np.uint64) + np.uint64(salt) != prefixes
    return int(np.argmax(broken)) if broken.any() else None
