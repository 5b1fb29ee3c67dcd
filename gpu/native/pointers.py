"""Addresses of arrays, for the compiled kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.backend import RefusedInputs
from pawl.gpu.devices import Array


def pointer(array: NDArray[Any]) -> int:
    """Address of the first element. Raises RefusedInputs unless the array is contiguous and of 4-byte elements."""
    if array.itemsize != 4 or not array.flags.c_contiguous:
        raise RefusedInputs(f"an array is not contiguous, or {array.dtype} where int32 is needed")
    address: int = array.__array_interface__["data"][0]
    return address


def tokens_pointer(tokens: Array, expected: int) -> int:
    """Of so many int32 tokens. Raises RefusedInputs for anything else."""
    if not isinstance(tokens, np.ndarray) or tokens.dtype != np.int32:
        raise RefusedInputs("tokens are not a contiguous int32 array")
    if len(tokens) != expected:
        raise RefusedInputs(f"{len(tokens)} tokens for {expected} positions")
    return pointer(tokens)


def int64_pointer(counts: Array) -> int:
    """Of counts of experts. Raises RefusedInputs for anything but contiguous int64."""
    if not isinstance(counts, np.ndarray) or counts.dtype != np.int64 or not counts.flags.c_contiguous:
        raise RefusedInputs("experts are not counted in a contiguous int64 array")
    address: int = counts.ctypes.data
    return address
