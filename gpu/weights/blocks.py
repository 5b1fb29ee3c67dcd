"""Weights that stay in the blocks of a GGUF file: the formats that the compiled kernels compute as they are."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

import numpy as np
import torch
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

    data: Tensor
    """uint8 [outputs, bytes of a row], on the host; may be a view of a file."""
    format: BlockFormat

    @property
    def shape(self) -> tuple[int, int]:
        """Of the numbers: (outputs, inputs)."""
        rows, row_bytes = self.data.shape
        return rows, row_bytes // self.format.num_bytes * self.format.inputs

    @property
    def dtype(self) -> str:
        """The format's name, which stands where a tensor has its dtype."""
        return self.format.name

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.data.nbytes

    def __getitem__(self, rows: slice) -> Blocks:
        """Some of the outputs."""
        return Blocks(self.data[rows], self.format)

    def float(self) -> Tensor:
        """The numbers, float32."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        values = dequantize(self.data.numpy(), GGMLQuantizationType(self.format))
        return torch.from_numpy(np.asarray(values, np.float32)).reshape(self.shape)


Weight: TypeAlias = Tensor | Blocks
Weights: TypeAlias = MutableMapping[str, Tensor] | MutableMapping[str, Weight]
"""By canonical names."""


def numbers_of(weight: Weight) -> Tensor:
    """The weight's numbers: of blocks float32, of a tensor itself."""
    return weight.float() if isinstance(weight, Blocks) else weight


def stored_of(weight: Weight) -> Tensor:
    """What is in memory: of blocks their bytes, of a tensor itself."""
    return weight.data if isinstance(weight, Blocks) else weight


class Dequantized(MutableMapping[str, Tensor]):
    """Weights for a backend that computes no blocks: each is dequantised when it is taken."""

    def __init__(self, weights: Weights, dtype: torch.dtype) -> None:
        self._weights = weights
        self._dtype = dtype

    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name]
        return weight.float().to(self._dtype) if isinstance(weight, Blocks) else weight

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        raise TypeError("weights are only taken from here")

    def __delitem__(self, name: str) -> None:
        del self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
