"""The state digest: 64 bits that change when any fact of memory does, kept up to date as facts come and go.

After Zobrist (1970), who hashed chess positions move by move, and AdHash (Bellare and Micciancio 1997), which adds
hashes instead of combining them by exclusive or:

    digest  =  sum over facts of hash(fact)  mod 2^64

A fact that is a number (a length, a reference count, a promise) is hashed as a random odd number of its subject times
that number, so changing many of them is one dot product. Sums do not depend on the order of what happened: what a
rollback must leave behind is the digest before it, minus what the undone operations had added, whatever else happened
between them and the rollback. `Transaction.rollback` compares.

It finds defects, not forgeries: the keys are the same in every process, so that digests can be compared between runs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from pawl.memory.arrays import Int64s

MASK = (1 << 64) - 1
CACHED, DEFERRED, RESERVED, AGED = 0x9FB21C651E98DF25, 0xC2B2AE3D27D4EB4F, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F
"""What a page or slot adds, times its own key, in these classes; and by how much a page's key grows with its age."""
_ONES = np.ones(4096, np.int64)


def keys(stream: int, count: int) -> Int64s:
    """Random odd numbers, int64 [count]; others for every stream."""
    return _drawn_keys(stream, count).copy()


@lru_cache(maxsize=256)
def _drawn_keys(stream: int, count: int) -> Int64s:
    """SplitMix64 (Steele, Lea and Flood 2014). Kept, as simulated runs set up the same small memory again and again."""
    state = np.arange(1, count + 1, dtype=np.uint64) + (np.uint64(stream) << np.uint64(40))
    mixed = state * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)).view(np.int64)


def total(numbers: Int64s) -> int:
    """Their sum mod 2^64, up to a multiple of it. A dot product with ones costs half of what a sum does."""
    count = len(numbers)
    return int(numbers.dot(_ONES[:count])) if count <= len(_ONES) else int(np.add.reduce(numbers))


def signed(number: int) -> np.int64:
    """The same number mod 2^64, as an array of int64 can take it."""
    number &= MASK
    return np.int64(number - (1 << 64) if number >> 63 else number)


class Unrestored(NamedTuple):
    """A rollback that did not lead back to where it should."""

    epoch: int
    savepoint: int
    difference: int
    """Digest found minus digest expected, mod 2^64."""


class Digest:
    """`value`: the sum so far, to be read mod 2^64. Every owner of memory adds its own facts to it."""

    __slots__ = ("_num_streams", "undoing", "unrestored", "value")

    def __init__(self) -> None:
        self.value = 0
        self.undoing = 0
        """Within a rollback: what the change that is being undone had added. The undo subtracts from it what it leaves
        in place, because a request has left since."""
        self.unrestored: Unrestored | None = None
        """The last rollback that did not restore the digest and has not been told yet."""
        self._num_streams = 0

    def stream(self) -> int:
        """A number for `keys` that nobody else here has."""
        self._num_streams += 1
        return self._num_streams

    def keys(self, count: int) -> Int64s:
        """Keys that nobody else here has."""
        return keys(self.stream(), count)
