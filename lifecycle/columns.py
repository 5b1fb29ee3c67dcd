"""Columns of records, and what is made of several: arrays where a record is made, little-endian bytes where it is read.
`int32s`, `uint8s` and `float32s` take both.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.step import DIGEST_BYTES

Int32s: TypeAlias = NDArray[np.int32]
UInt8s: TypeAlias = NDArray[np.uint8]
Bools: TypeAlias = NDArray[np.bool_]
Float32s: TypeAlias = NDArray[np.float32]
PageKeys: TypeAlias = bytes
"""Keys of pages, 16 bytes each, one after the other."""

if TYPE_CHECKING:
    Int32Column: TypeAlias = Any
    """NDArray[int32] in a record that was made here, bytes in one that was read."""
    UInt8Column: TypeAlias = Any
    """NDArray[uint8] or NDArray[bool] in a record that was made here, bytes in one that was read."""
    Float32Column: TypeAlias = Any
    """NDArray[float32] in a record that was made here, bytes in one that was read."""
else:  # what the decoder is to accept
    Int32Column = UInt8Column = Float32Column = bytes

if sys.byteorder != "little":
    raise ImportError("traces are little-endian, and so must the machine be")


class PageCounts(NamedTuple):
    """Pages of one pool by class; they sum to the pool."""

    free: int
    owned: int
    cached: int
    deferred: int
    quarantined: int


class CacheChange(NamedTuple):
    """One thing that happened in the prefix cache."""

    kind: str
    """stored; removed; cleared: all that was cached."""
    namespace: str
    """stored: of the requests that may share the pages."""
    parent: int | None
    """stored: the page before the first of `pages`; None at the beginning of a prompt."""
    pages: Int32Column
    """stored, removed: in this order."""


class Scores(NamedTuple):
    """Log-probabilities of n tokens, drawn ones and tokens of prompts, as they go to clients."""

    rows: Int32Column
    """[n] of the requests, which asked for them"""
    positions: Int32Column
    """[n] of each token in its request, prompt and output counted through"""
    chosen: Float32Column
    """[n] of the token itself"""
    num_top: Int32Column
    """[n] how many other tokens in its place its request asked for: of the likeliest, and those that it named"""
    top_tokens: Int32Column
    """[sum of `num_top`] likeliest first, then the named; those of one token after those of the other"""
    top: Float32Column
    """of `top_tokens`"""


class Embedded(NamedTuple):
    """Vectors of n requests, as they go to clients."""

    rows: Int32Column
    """[n] of the requests, which asked for them"""
    digests: bytes
    """`DIGEST_BYTES` of each, one after the other"""


def digests_of(embedded: Embedded) -> list[bytes]:
    """One for each vector. Raises ValueError where they do not come out even."""
    rows, digests = int32s(embedded.rows), embedded.digests
    if len(digests) != len(rows) * DIGEST_BYTES:
        raise ValueError(f"{len(digests)} bytes of digests for {len(rows)} vectors")
    return [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]


def int32s(column: Int32Column) -> Int32s:
    """A column as int32 [n]; read-only where it came from bytes."""
    return np.frombuffer(column, np.int32) if isinstance(column, bytes) else np.asarray(column, np.int32)


def uint8s(column: UInt8Column) -> UInt8s:
    """A column as uint8 [n]; read-only where it came from bytes."""
    return np.frombuffer(column, np.uint8) if isinstance(column, bytes) else np.asarray(column).view(np.uint8)


def float32s(column: Float32Column) -> Float32s:
    """A column as float32 [n]; read-only where it came from bytes."""
    return np.frombuffer(column, np.float32) if isinstance(column, bytes) else np.asarray(column, np.float32)


_DTYPES = frozenset(map(np.dtype, (np.int32, np.uint8, np.bool_, np.float32)))


def encode_column(value: Any) -> bytes:
    """The bytes of an array. Raises TypeError for what is no column."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"a trace record cannot hold a {type(value).__name__}")
    if value.dtype not in _DTYPES:
        raise TypeError(f"a column of a trace record is int32, uint8, bool or float32, not {value.dtype}")
    return value.tobytes()
