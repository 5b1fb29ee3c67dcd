"""Index arithmetic over segments of different lengths that lie one after the other; numpy only."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Int32s: TypeAlias = NDArray[np.int32]


def ragged_offsets(lengths: Int32s) -> Int32s:
    """Where each segment begins, and where the last one ends: int32 [n + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ragged_positions(starts: Int32s, lengths: Int32s, offsets: Int32s) -> Int32s:
    """starts[i], starts[i] + 1, ... for lengths[i] entries, one segment after the other: int32 [offsets[-1]]."""
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int32)
