"""Pages in host memory: one block of bytes for all, least recently used first out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pawl.memory.arrays import UInt8s
from pawl.memory.tiers.keys import PageKey
from pawl.memory.violation import MemoryViolation


class Displaced(NamedTuple):
    """A page that had to leave; `block` is its bytes until the next `put`."""

    key: PageKey
    block: UInt8s


class HostPool:
    """Room for `capacity` pages of `page_bytes` bytes each; the system maps it as it is first written."""

    def __init__(self, capacity: int, page_bytes: int, blocks: UInt8s | None = None) -> None:
        """`blocks`: the memory, uint8 [capacity, page_bytes], where it is not this process's alone."""
        if capacity < 0 or page_bytes < 1:
            raise ValueError(f"a pool of {capacity} pages of {page_bytes} bytes")
        self.capacity = capacity
        self.page_bytes = page_bytes
        self._blocks: UInt8s = np.zeros((capacity, page_bytes), np.uint8) if blocks is None else blocks
        self._place: dict[PageKey, int] = {}
        """Key -> row of `_blocks`; the least recently used first."""
        self._free = list(range(capacity - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, key: PageKey) -> bool:
        return key in self._place

    def items(self) -> Iterator[tuple[PageKey, UInt8s]]:
        """Every page, the most recently used first."""
        return ((key, self._blocks[place]) for key, place in reversed(self._place.items()))

    def oldest(self) -> Displaced | None:
        """The page that the next `put` of a new key displaces; None while there is room."""
        if self._free or not self._place:
            return None
        key = next(iter(self._place))
        return Displaced(key, self._blocks[self._place[key]])

    def put(self, key: PageKey, block: UInt8s) -> PageKey | None:
        """Keep a copy of `block`, uint8 [page_bytes], as the most recently used; the key that was displaced.

        A page that is here already keeps its bytes: equal keys mean equal content. Without any room nothing happens.
        """
        if block.shape != (self.page_bytes,):
            raise MemoryViolation("a page has one size", page_bytes=self.page_bytes, shape=block.shape)
        displaced = None if self._free or key in self._place else next(iter(self._place), None)
        if self._touch(key) is None and (place := self.take()) is not None:
            kept: PageKey | None = None
            try:
                self._blocks[place] = block
                kept = key
            finally:
                self.settle(place, kept)
        return displaced

    def take(self) -> int | None:
        """A row in which a page is to be made where it stays, until `settle`; what had to leave for it has left. None
        where pages are being made in all of them."""
        if self._free:
            return self._free.pop()
        oldest = next(iter(self._place), None)
        return None if oldest is None else self._place.pop(oldest)

    def at(self, row: int) -> UInt8s:
        """The bytes of a row, uint8 [page_bytes]."""
        block: UInt8s = self._blocks[row]
        return block

    def settle(self, row: int, key: PageKey | None) -> None:
        """The page that was to be made in a row is there, the most recently used one; None: it could not be made."""
        if key is None:
            self._free.append(row)
        else:
            self._place[key] = row

    def reclaim(self) -> None:
        """No page is being made any more, whatever failed in between: rows without one are free. O(capacity)."""
        used = set(self._place.values())
        self._free = [row for row in range(self.capacity) if row not in used]

    def get(self, key: PageKey) -> UInt8s | None:
        """The page's bytes, uint8 [page_bytes], a view that the next `put` may overwrite; None when it is not here."""
        place = self._touch(key)
        return None if place is None else self._blocks[place]

    def blocks(self, keys: Sequence[PageKey]) -> list[UInt8s] | None:
        """These pages, in their order, as views uint8 [k, page_bytes] of those side by side, which the next `put` may
        overwrite them. None when one is not here."""
        rows = [self._touch(key) for key in keys]
        known = [row for row in rows if row is not None]
        if len(known) < len(rows):
            return None
        begins = [at for at, row in enumerate(known) if at == 0 or row != known[at - 1] + 1]
        return [self._blocks[known[at] : known[at] + end - at] for at, end in pairwise([*begins, len(known)])]

    def block(self, key: PageKey) -> UInt8s:
        """The bytes of a page that is here, as `get`; that is no use of it. Raises KeyError for one that is not."""
        block: UInt8s = self._blocks[self._place[key]]
        return block

    def row(self, key: PageKey) -> int | None:
        """Which row of the memory the page is in, until it leaves; None when it is not here."""
        return self._place.get(key)

    def _touch(self, key: PageKey) -> int | None:
        place = self._place.pop(key, None)
        if place is not None:
            self._place[key] = place
        return place

    def clear(self) -> list[PageKey]:
        """Forget everything; the keys that were here."""
        keys = list(self._place)
        self._free.extend(self._place.values())
        self._place.clear()
        return keys

    def check_all(self) -> None:
        """Every row is free or has one key; O(capacity)."""
        if sorted([*self._free, *self._place.values()]) != list(range(self.capacity)):
            raise MemoryViolation("free + used = capacity", free=len(self._free), used=len(self._place))
