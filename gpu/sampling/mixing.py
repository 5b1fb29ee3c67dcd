"""Hashes of 64-bit and of 32-bit words, a whole array at a time; numpy only."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.step import Int32s

UInt32s: TypeAlias = NDArray[np.uint32]
UInt64s: TypeAlias = NDArray[np.uint64]

SPREAD = np.uint32(0x9E3779B1)
FIRST = np.uint32(0x7FEB352D)
SECOND = np.uint32(0x846CA68B)


def mix64(words: UInt64s) -> UInt64s:
    """The finaliser of SplitMix64 (Steele et al. 2014), uint64 of any shape."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def draw_keys(seeds: UInt64s, positions: NDArray[np.int32]) -> UInt64s:
    """What the noise of a draw depends on, uint64 [n]: a seed, and the position of the token to be drawn."""
    return mix64(seeds ^ mix64(positions.astype(np.uint64)))


def row_keys(seeds: UInt64s, positions: Int32s) -> Int32s:
    """Two 32-bit words for each row, int32 [n, 2], from its seed and the position of the token to be drawn."""
    return draw_keys(seeds, positions).view(np.int32).reshape(-1, 2)


def mix32(words: UInt32s) -> UInt32s:
    """Mix words in place (Wellons, "hash prospector"); they are returned."""
    for shift, factor in ((16, FIRST), (15, SECOND), (16, None)):
        words ^= words >> np.uint32(shift)
        if factor is not None:
            words *= factor
    return words
