"""What moving pages does to the columns of a pool, and what pages add to the digest: arithmetic, and no decision.

Most of what an admission costs is this, a few pages at a time. So the compiled core of the cache has the same functions
(memory/prefix/native/moves.h), and brings them along; tests hold both against each other.

`pages` are distinct, int32 [n]; `refcount`, `in_cache` and `keys`: columns of the pool, int32, bool and int64. What is
returned is mod 2^64, as the digest is.
"""

from __future__ import annotations

import sys
from typing import Protocol

import numpy as np

from pawl.memory.arrays import ONE, Bools, Int32s, Int64s
from pawl.memory.digest import total

# Whether a bool array has a 0 or a 1 is asked of its bytes: a few pages are searched many times quicker so.


def take(pages: Int32s, refcount: Int32s, in_cache: Bools, keys: Int64s) -> int:
    """Free pages have one referrer each. The sum of their keys."""
    index = pages.astype(np.intp)
    refcount[index] = 1
    return total(keys[index])


def share(pages: Int32s, refcount: Int32s, in_cache: Bools, keys: Int64s) -> int | None:
    """Cached pages have one more referrer each. The sum of their keys; None, and no change, where one is not cached."""
    index = pages.astype(np.intp)
    if 0 in in_cache[index].tobytes():
        return None
    refcount[index] += ONE
    return total(keys[index])


def adopt(pages: Int32s, refcount: Int32s, in_cache: Bools, keys: Int64s) -> int | None:
    """Pages that are referred to are cached as well, which is one more referrer. The sum of their keys; None, and no
    change, where nobody refers to one, or the cache does already."""
    index = pages.astype(np.intp)
    referrers = refcount[index]
    if 1 in in_cache[index].tobytes() or np.count_nonzero(referrers) < len(pages):
        return None
    refcount[index] = referrers + ONE
    in_cache[index] = True
    return total(keys[index])


def worth(pages: Int32s, places: Int64s, keys: Int64s) -> int:
    """The sum of each page's key times that of its place, int64 [n]."""
    return int(places.dot(keys[pages.astype(np.intp)]))


def moves_of(cache: object) -> Moves:
    """Those that a prefix cache brings along, else these."""
    moves: Moves = getattr(cache, "moves", sys.modules[__name__])
    return moves


class Moves(Protocol):
    """This module, or the compiled one."""

    def take(self, pages: Int32s, refcount: Int32s, in_cache: Bools, keys: Int64s, /) -> int: ...
    def share(self, pages: Int32s, refcount: Int32s, in_cache: Bools, keys: Int64s, /) -> int | None: ...
    def adopt(self, pages: Int32s, refcount: Int32s, in_cache: Bools, keys: Int64s, /) -> int | None: ...
    def worth(self, pages: Int32s, places: Int64s, keys: Int64s, /) -> int: ...
