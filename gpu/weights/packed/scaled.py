"""A quantised matrix, unpacked: whole numbers, or float8, and their scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.dtypes import converted, floats_of, is_floating
from pawl.gpu.weights.blocks import BlockFormat, Blocks

_TILE = 1 << 20
"""Numbers that are float32 at the same time."""
_RANGES = {BlockFormat.Q4_0: (-8, 7), BlockFormat.Q5_0: (-16, 15), BlockFormat.Q8_0: (-128, 127)}
"""Whole numbers of blocks of 32 with one scale, the smallest blocks first."""


@dataclass(frozen=True, eq=False, slots=True)
class Scaled:
    """A matrix [outputs, inputs]: each number times the scale of its output and its input's group."""

    values: NDArray[Any]
    """int8, int16 or float8 [outputs, inputs], zero points taken away."""
    scales: NDArray[np.float32]
    """[outputs, groups]"""
    groups: NDArray[np.intp]
    """[inputs]: the group of each input."""

    def numbers(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """[outputs, inputs] in `dtype`, each rounded once from float32."""
        outputs, inputs = self.values.shape
        found = np.empty((outputs, inputs), dtype)
        step = max(1, _TILE // max(1, inputs))
        for first in range(0, outputs, step):
            rows = slice(first, first + step)
            values = self.values[rows]
            floats = floats_of(values) if is_floating(values.dtype) else values.astype(np.float32)
            with np.errstate(over="ignore"):  # what is too large is told by its name
                found[rows] = converted(floats * self.scales[rows].take(self.groups, 1), dtype)
        return found

    def blocks(self) -> Blocks | None:
        """The very same numbers as blocks; None where there are none that hold them: some are too large, 32 of a row
        have no scale in common, or a scale has more bits than half precision."""
        outputs, inputs = self.values.shape
        size = BlockFormat.Q8_0.inputs
        if self.values.dtype.kind != "i" or not self.values.size or inputs % size:
            return None
        groups = self.groups.reshape(-1, size)
        with np.errstate(over="ignore"):
            halves = self.scales.astype(np.float16)
        if (groups != groups[:, :1]).any() or (halves.astype(np.float32) != self.scales).any():
            return None
        least, most = int(self.values.min()), int(self.values.max())
        kind = next((kind for kind, (low, high) in _RANGES.items() if low <= least and most <= high), None)
        if kind is None:
            return None
        found = np.empty((outputs, inputs // size, kind.num_bytes), np.uint8)
        found[..., :2] = halves.take(groups[:, 0], 1)[..., None].view(np.uint8)
        _put(kind, self.values.reshape(outputs, -1, size), found[..., 2:])
        return Blocks(found.reshape(outputs, -1), kind)


def _put(kind: BlockFormat, values: NDArray[Any], to: NDArray[np.uint8]) -> None:
    """Whole numbers [outputs, blocks, 32] as GGML lays them out behind a block's scale (`gpu/native/ggml.h`)."""
    if kind == BlockFormat.Q8_0:
        to[:] = values.astype(np.int8, copy=False).view(np.uint8)
        return
    quants = (values - _RANGES[kind][0]).astype(np.uint8)
    if kind == BlockFormat.Q5_0:
        to[..., :4] = np.packbits(quants >> 4, -1, bitorder="little")
    np.bitwise_or(quants[..., :16] & 15, quants[..., 16:] << 4, out=to[..., -16:])
