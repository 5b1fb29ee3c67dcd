"""Adapters on a CUDA device: their matrices, a table of where these lie, and the rows of a step by adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from numpy.typing import NDArray
from torch import Tensor

from pawl.gpu.adapters.low_rank import PRODUCTS, Adapter, LowRank, Product
from pawl.gpu.devices import upload
from pawl.gpu.kernels.low_rank import ENTRY, Blocks, add_low_rank, rank_step
from pawl.gpu.kernels.matmul import FEW_ROWS
from pawl.lifecycle.step import Int32s

_NUMBER: dict[Product, int] = {product: number for number, product in enumerate(PRODUCTS)}


class KernelAdapter:
    """`PackedAdapter` whose ranks are what the kernels take."""

    def __init__(self, adapter: Adapter, dtype: torch.dtype, device: torch.device) -> None:
        step = rank_step(dtype)
        layers = tuple({name: _filled(low, step) for name, low in layer.items()} for layer in adapter.layers)
        self.adapter = Adapter(adapter.fingerprint, layers).to(dtype, device)
        self.num_bytes = self.adapter.num_bytes
        self.table = np.zeros((len(layers) * len(PRODUCTS), ENTRY), np.int64)
        """For each product of each layer: where its matrices lie, and their rank."""
        for index, layer in enumerate(self.adapter.layers):
            for name, (shrink, expand) in layer.items():
                self.table[index * len(PRODUCTS) + _NUMBER[name]] = shrink.data_ptr(), expand.data_ptr(), len(shrink)


def _filled(low: LowRank, step: int) -> LowRank:
    """With zeros up to the next multiple of `step`."""
    missing = -len(low.shrink) % step
    return LowRank(F.pad(low.shrink, (0, 0, 0, missing)), F.pad(low.expand, (0, missing)))


@dataclass(frozen=True, slots=True)
class KernelAdapters:
    """`StepAdapters` in Triton kernels: all adapters of a product in one launch."""

    ranks: NDArray[np.int64]
    """The largest of any of the step's adapters, for each product of each layer."""
    table: Tensor
    """int64 [adapters, products, ENTRY]"""
    numbers: Int32s
    """[n], each row's adapter in the table; -1 for none."""
    blocks: Blocks
    layer: int = 0

    @classmethod
    def of(cls, adapters: Sequence[KernelAdapter], numbers: Int32s, device: torch.device) -> Self:
        """Rows of which row i goes through adapter numbers[i]."""
        table = np.stack([adapter.table for adapter in adapters])
        return cls(table[:, :, 2].max(0), upload(table, device), numbers, _blocks(numbers, device))

    def at(self, layer: int) -> Self:
        """See `StepAdapters.at`."""
        return replace(self, layer=layer)

    def of_rows(self, rows: Int32s) -> Self:
        """See `StepAdapters.of_rows`."""
        numbers = self.numbers[rows]
        return replace(self, numbers=numbers, blocks=_blocks(numbers, self.table.device))

    def add(self, product: Product, rows: Tensor, output: Tensor) -> None:
        """See `StepAdapters.add`."""
        entry = self.layer * len(PRODUCTS) + _NUMBER[product]
        widest = int(self.ranks[entry])
        if widest and len(self.blocks.order):
            add_low_rank(rows, output, self.blocks, self.table, entry, widest)


def _blocks(numbers: Int32s, device: torch.device) -> Blocks:
    order = np.argsort(numbers, kind="stable")
    order = order[numbers[order] >= 0].astype(np.int32)
    blocks, first = [], 0
    for number, count in zip(*np.unique(numbers[order], return_counts=True), strict=True):
        end = first + int(count)
        blocks += [(int(number), at, min(FEW_ROWS, end - at)) for at in range(first, end, FEW_ROWS)]
        first = end
    flat = upload(np.array(blocks, np.int32).reshape(-1, 3), device)
    return Blocks(upload(order, device), flat)
