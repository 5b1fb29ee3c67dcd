"""What an engine is told of a group in which a trainer broadcasts weights, and of what the trainer is about to send."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import msgspec

WIDTHS = {
    **dict.fromkeys(("float64", "int64", "uint64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32"), 4),
    **dict.fromkeys(("bfloat16", "float16", "int16", "uint16"), 2),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "int8", "uint8"), 1),
}
"""Bytes of one number, by PyTorch's names of its types."""
_ALIGNED = 64
CollectiveBackend: TypeAlias = Literal["gloo", "nccl"]


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a group meets, and what this engine is in it."""

    group: str
    address: str
    port: int
    rank: int
    """Of this engine. The trainer, who broadcasts, is 0."""
    world_size: int
    backend: CollectiveBackend


class TensorSpec(msgspec.Struct, frozen=True):
    """One tensor that is to come."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * WIDTHS[self.dtype]


def offsets_of(specs: Sequence[TensorSpec]) -> list[int]:
    """Where each begins in one memory, in bytes, and where the last ends."""
    offsets = [0]
    for spec in specs:
        offsets.append(-(-(offsets[-1] + spec.num_bytes) // _ALIGNED) * _ALIGNED)
    return offsets
