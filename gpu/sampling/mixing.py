"""A hash of 64-bit words, a whole array at a time; numpy only."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

UInt64s: TypeAlias = NDArray[np.uint64]


def mix64(words: UInt64s) -> UInt64s:
    """The finaliser of SplitMix64 (Steele et al. 2014), uint64 of any shape."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def draw_keys(seeds: UInt64s, positions: NDArray[np.int32]) -> UInt64s:
    """What the noise of a draw depends on, uint64 [n]: a seed, and the position of the token to be drawn."""
    return mix64(seeds ^ mix64(positions.astype(np.uint64)))
