"""Types of numbers, as numpy has them, and from one to another. Needs no PyTorch.

numpy knows no bfloat16 and no float8. Arrays of these hold the bits, under a dtype of their own, so that they can be
cut, reshaped and copied like any other; to compute with them is what `converted` is for.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Dtype: TypeAlias = "np.dtype[Any] | torch.dtype"
"""What callers may name a type by."""

FLOAT32 = np.dtype(np.float32)
BFLOAT16 = np.dtype([("bfloat16", np.uint16)])
_E4M3 = np.dtype([("float8_e4m3fn", np.uint8)])
_E5M2 = np.dtype([("float8_e5m2", np.uint8)])
_FLOATS = (np.dtype(np.float64), FLOAT32, np.dtype(np.float16), BFLOAT16, _E4M3, _E5M2)
_BY_NAME = {dtype.names[0] if dtype.names else dtype.name: dtype for dtype in _FLOATS}

DTYPES = {"bf16": BFLOAT16, "fp32": FLOAT32}
"""By the names that settings have for them."""


def dtype_of(named: Dtype | str) -> np.dtype[Any]:
    """numpy's dtype of the same name, "bfloat16" or `torch.bfloat16`. Raises TypeError for one that nobody knows."""
    if isinstance(named, np.dtype):
        return named
    name = str(named).removeprefix("torch.")
    return _BY_NAME[name] if name in _BY_NAME else np.dtype(name)


def name_of(dtype: Dtype) -> str:
    """ "bfloat16", "float32": what PyTorch calls it, without the library."""
    if isinstance(dtype, np.dtype):
        return dtype.names[0] if dtype.names else dtype.name
    return str(dtype).removeprefix("torch.")


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Whether these are floating-point numbers, and no integers."""
    return dtype in _FLOATS


def converted(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Floating-point numbers in another type, bfloat16 or one of numpy's, rounded to the nearest; itself where it has
    that type already."""
    if array.dtype == dtype:
        return array
    if dtype == BFLOAT16:
        return _to_bfloat16(floats_of(array))
    with np.errstate(over="ignore"):  # infinity, as in bfloat16
        return floats_of(array).astype(dtype, copy=False)


def floats_of(array: NDArray[Any]) -> NDArray[np.float32]:
    """Floating-point numbers as float32; itself where it is that already."""
    if array.dtype == BFLOAT16:
        return (array.view(np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)
    if array.dtype == _E5M2:
        return (array.view(np.uint8).astype(np.uint16) << np.uint16(8)).view(np.float16).astype(np.float32)
    if array.dtype == _E4M3:
        return _E4M3_VALUES[array.view(np.uint8)]
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def _to_bfloat16(floats: NDArray[np.float32]) -> NDArray[Any]:
    """Rounded to the nearest, of two equally near ones to the even; what is no number stays none."""
    bits = np.ascontiguousarray(floats).view(np.uint32)
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
    rounded >>= np.uint32(16)
    rounded[np.isnan(floats)] = 0x7FC0
    return rounded.astype(np.uint16).view(BFLOAT16).reshape(floats.shape)


def _e4m3_values() -> NDArray[np.float32]:
    """float32 [256]: of each pattern of sign, four bits of exponent and three of the rest."""
    codes = np.arange(256)
    exponent, rest = codes >> 3 & 15, codes & 7
    sizes = np.where(exponent == 0, rest / 8 * 2.0**-6, (1 + rest / 8) * 2.0 ** (exponent - 7))
    sizes[codes & 127 == 127] = np.nan
    return np.where(codes >= 128, -sizes, sizes).astype(np.float32)


_E4M3_VALUES = _e4m3_values()


# ---- PyTorch's ----


def torch_dtype(dtype: Dtype) -> torch.dtype:
    """PyTorch's dtype of the same name."""
    import torch

    found: torch.dtype = getattr(torch, name_of(dtype))
    return found


def tensor_of(array: NDArray[Any]) -> torch.Tensor:
    """The same memory as a tensor, which must not be written where the array must not."""
    import torch

    bits = array if array.dtype.names is None else array.view(np.uint8 if array.itemsize == 1 else np.int16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch has no tensor that cannot be written, and says so
        return torch.from_numpy(np.ascontiguousarray(bits).reshape(bits.shape)).view(torch_dtype(array.dtype))


def array_of(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor as an array on the host: the same memory where it is there."""
    import torch

    dtype = dtype_of(tensor.dtype)
    tensor = tensor.detach().cpu()
    if dtype.names is None:
        found: NDArray[Any] = tensor.numpy()
        return found
    return tensor.contiguous().view(torch.uint8 if dtype.itemsize == 1 else torch.int16).numpy().view(dtype)
