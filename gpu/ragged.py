"""Index arithmetic over segments of different lengths that lie one after the other; numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.step import Int32s, StepBatch


def ragged_offsets(lengths: Int32s) -> Int32s:
    """Where each segment begins, and where the last one ends: int32 [n + 1]."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def ragged_positions(starts: Int32s, lengths: Int32s, offsets: Int32s) -> Int32s:
    """starts[i], starts[i] + 1, ... for lengths[i] entries, one segment after the other: int32 [offsets[-1]]."""
    return np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1], dtype=np.int32)


def chained_rows(batch: StepBatch, offsets: Int32s) -> NDArray[np.int64]:
    """The first position of each chained segment, int64 [number of chained segments]."""
    return offsets[:-1][batch.chained].astype(np.int64)


def with_chained(batch: StepBatch, offsets: Int32s, chained: Int32s | np.int32) -> Int32s:
    """The batch's tokens int32 [t], with `chained` (one, or one for each chained segment) in the chained rows."""
    rows = chained_rows(batch, offsets)
    given = np.ones(int(offsets[-1]), np.bool_)
    given[rows] = False
    tokens = np.empty(int(offsets[-1]), np.int32)
    tokens[given] = batch.tokens
    tokens[rows] = chained
    return tokens
