"""Questions about the weights that compute: their values, and whether they are those that somebody thinks they are.
Needs no PyTorch where the weights are none of its tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pawl.gpu import dtypes
from pawl.gpu.weights.blocks import Blocks, Weight, numbers_of
from pawl.gpu.weights.fingerprint import bytes_of

_DIGITS = 16
_STACKED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"} | {
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
"""Parts of a product, as a checkpoint has them -> its name, as engines have it."""


def stacked(names: Iterator[str]) -> dict[str, list[str]]:
    """The weights that read the same input, one below the other, under the name that SGLang and vLLM have for the
    whole; every other one under its own."""
    found: dict[str, list[str]] = {}
    for name in names:
        stem, dot, kind = name.rpartition(".")
        layer, _, part = stem.rpartition(".")
        whole = f"{layer}.{_STACKED[part]}{dot}{kind}" if part in _STACKED else name
        found.setdefault(whole, []).append(name)
    return found


def floats_of(weight: Weight) -> NDArray[np.float64]:
    """The numbers of a weight."""
    numbers = numbers_of(weight)
    # Of types that numpy does not know.
    return (dtypes.floats_of(numbers) if numbers.dtype.names else numbers).astype(np.float64)


def dtype_of(weight: Weight) -> str:
    """The name of its type, without the library's."""
    return weight.dtype if isinstance(weight, Blocks) else dtypes.name_of(weight.dtype)


def digests(weights: Mapping[str, Any]) -> dict[str, str]:
    """16 hexadecimal digits of all bytes of each weight, by the names of `stacked`."""
    return {whole: _digest(weights, parts) for whole, parts in stacked(iter(weights)).items()}


def _digest(weights: Mapping[str, Any], parts: list[str]) -> str:
    digest = hashlib.sha256()
    for name in parts:
        digest.update(bytes_of(weights[name]))
    return digest.hexdigest()[:_DIGITS]


def differences(weights: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, float]:
    """The largest difference of two numbers in each weight whose bytes differ, by the names of `stacked`."""
    found = {}
    for whole, parts in stacked(iter(weights)).items():
        differing = [name for name in parts if bytes_of(weights[name]) != bytes_of(before[name])]
        if differing:
            found[whole] = max(_distance(weights[name], before[name]) for name in differing)
    return found


def _distance(one: Any, other: Any) -> float:
    """NaN where a number is not one."""
    return float(np.abs(floats_of(one) - floats_of(other)).max())
