"""Are all numbers of a weight finite? One that is not makes every request's scores no numbers, and so is told where it
is read, by its name.

All of a weight is looked at, at a start too: it is read once more than it is packed, at some ten times the pace
(decision 0061). Of blocks only the scales can be anything else than finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.dtypes import name_of
from pawl.gpu.weights.blocks import BlockFormat, Blocks, HostWeight, Weight, on_host

_TILE = 1 << 17
"""Numbers that are looked at while they are in a near cache."""
_INFINITY = {"float64": 0x7FF << 52, "float32": 0xFF << 23, "float16": 0x1F << 10, "bfloat16": 0xFF << 7} | {
    "float8_e5m2": 0x1F << 2,
    "float8_e4m3fn": 0x7F,
}
"""The least bits, without the sign, of what is not finite: the largest exponent; NaN of E4M3, which has no infinity."""
_HALVES = {BlockFormat.Q6_K: slice(208, 210)} | dict.fromkeys(
    (BlockFormat.Q4_1, BlockFormat.Q5_1, BlockFormat.Q4_K, BlockFormat.Q5_K), slice(0, 4)
)
"""Where a block has its scales, in half precision; elsewhere it begins with one."""


NOT_FINITE = "holds a number that is not finite (NaN or an infinity)"


class NotFinite(Exception):
    """A weight holds NaN or an infinity."""

    def __init__(self, path: Path | str, name: str) -> None:
        super().__init__(f"{path}: {name} {NOT_FINITE}")


def check_finite(path: Path | str, weights: Mapping[str, Weight]) -> None:
    """Raises NotFinite for the first of these weights, of the checkpoint at `path`, that is not finite in the type that
    is computed with: a number may be too large for that."""
    for name, weight in weights.items():
        if not is_finite(on_host(weight)):
            raise NotFinite(path, name)


def is_finite(weight: HostWeight) -> bool:
    """Whether all numbers are. Of an array of integers, they are."""
    if isinstance(weight, Blocks):
        rows = weight.data.reshape(len(weight), -1, weight.format.num_bytes)
        return _all_below(rows[..., _HALVES.get(weight.format, slice(0, 2))], np.dtype(np.float16))
    return _all_below(weight, weight.dtype)


def _all_below(numbers: NDArray[Any], dtype: np.dtype[Any]) -> bool:
    """Whether all are below infinity, by their bits: what is not would be at the top, without its sign among signed
    numbers and with it among unsigned ones. Two maxima, and no copies."""
    least = _INFINITY.get(name_of(dtype))
    if least is None or not numbers.size:
        return True
    width = dtype.itemsize
    step = max(1, _TILE * len(numbers) // numbers.size)  # rows
    for first in range(0, len(numbers), step):
        bits = numbers[first : first + step].view(f"u{width}")
        if bits.view(f"i{width}").max() >= least or bits.max() >= least | 1 << (8 * width - 1):
            return False
    return True
