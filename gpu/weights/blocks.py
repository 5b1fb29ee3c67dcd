"""What a weight is: an array of numbers on the host (`pawl.gpu.dtypes`), a matrix in blocks, as a GGUF file has
them, in a format that the compiled kernels compute as it is, or a tensor of a backend that computes in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.dtypes import Dtype, array_of, converted, dtype_of, tensor_of

if TYPE_CHECKING:
    from torch import Tensor


class BlockFormat(IntEnum):
    """What the compiled kernels multiply without making other numbers of it first (`Format` in `gpu/native/blocks.h`):
    numbers and names of `gguf.GGMLQuantizationType`."""

    Q4_0 = 2
    Q4_1 = 3
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    IQ4_NL = 20

    @property
    def inputs(self) -> int:
        """Numbers of one block."""
        return 256 if self.name.endswith("_K") else 32

    @property
    def num_bytes(self) -> int:
        """Bytes of one block."""
        return _BLOCK_BYTES[self]

    def row_bytes(self, inputs: int) -> int:
        """Bytes of a row of `inputs` numbers, which are whole blocks."""
        return inputs // self.inputs * self.num_bytes


_BLOCK_BYTES = dict(zip(BlockFormat, (18, 20, 22, 24, 34, 144, 176, 210, 18), strict=True))


@dataclass(frozen=True, eq=False, slots=True)
class Blocks:
    """A quantised matrix [outputs, inputs]."""

    data: NDArray[np.uint8]
    """[outputs, bytes of a row]; may be a view of a file."""
    format: BlockFormat

    @property
    def shape(self) -> tuple[int, int]:
        """Of the numbers: (outputs, inputs)."""
        rows, row_bytes = self.data.shape
        return rows, row_bytes // self.format.num_bytes * self.format.inputs

    @property
    def dtype(self) -> str:
        """The format's name, which stands where an array has its dtype."""
        return self.format.name

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.data.nbytes

    def __len__(self) -> int:
        """Outputs."""
        return len(self.data)

    def __getitem__(self, rows: slice) -> Blocks:
        """Some of the outputs."""
        return Blocks(self.data[rows], self.format)

    def float(self) -> NDArray[np.float32]:
        """The numbers."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        values = dequantize(self.data, GGMLQuantizationType(self.format))
        return np.asarray(values, np.float32).reshape(self.shape)


HostWeight: TypeAlias = "NDArray[Any] | Blocks"
Weight: TypeAlias = "HostWeight | Tensor"
Weights: TypeAlias = "MutableMapping[str, NDArray[Any]] | MutableMapping[str, Tensor] | MutableMapping[str, Weight]"
"""By canonical names."""


def on_host(weight: Weight) -> HostWeight:
    """The weight on the host: of a tensor there the same memory."""
    return weight if isinstance(weight, np.ndarray | Blocks) else array_of(weight)


def numbers_of(weight: Weight) -> NDArray[Any]:
    """The weight's numbers, on the host: of blocks float32, of all else in their own type."""
    host = on_host(weight)
    return host.float() if isinstance(host, Blocks) else host


def stored_of(weight: Weight) -> NDArray[Any]:
    """What is in memory: of blocks their bytes, of all else its numbers, on the host."""
    host = on_host(weight)
    return host.data if isinstance(host, Blocks) else host


class Tensors(MutableMapping[str, "Tensor"]):
    """Weights for a backend that computes in PyTorch: each becomes a tensor when it is taken, blocks in `dtype`."""

    def __init__(self, weights: Weights, dtype: Dtype) -> None:
        self._weights = weights
        self._dtype = dtype_of(dtype)

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        if isinstance(weight, Blocks):
            return tensor_of(converted(weight.float(), self._dtype))
        return tensor_of(weight) if isinstance(weight, np.ndarray) else weight

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        raise TypeError("weights are only taken from here")

    def __delitem__(self, name: str) -> None:
        del self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
