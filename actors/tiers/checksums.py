"""Checksums of pages that go from one replica to another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.actors.tiers.files import UInt8s
from pawl.memory.tiers.keys import PageKey

UInt64s: TypeAlias = NDArray[np.uint64]


def checksums(keys: Sequence[PageKey], pages: Iterable[UInt8s]) -> UInt64s:
    """Of each of `pages`, uint8 [page_bytes] each, under its name: uint64 [len(keys)]."""
    return np.array([checksum(key, page) for key, page in zip(keys, pages, strict=True)], np.uint64)


def checksum(key: PageKey, page: UInt8s) -> int:
    """Of a page, uint8 [page_bytes], under its name.

    Multilinear hashing (Lemire and Kaser, 2014) over words of 8 bytes: no change of one word, and one in 2**64 of any
    others, goes unseen. It is as fast as the memory is read, where a cryptographic digest takes longer than the way.
    """
    words = (page if len(page) % 8 == 0 else np.pad(page, (0, -len(page) % 8))).view(np.uint64)
    return int(np.einsum("j,j->", words, _weights(len(words)))) ^ int.from_bytes(key[:8], "little")


@lru_cache(maxsize=8)
def _weights(count: int) -> UInt64s:
    """Odd numbers without a pattern (SplitMix64), uint64 [count]."""
    state = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (state ^ (state >> np.uint64(31))) | np.uint64(1)
