"""The rows of a step that go through adapters, and what these add to a layer's products, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

from pawl.gpu.adapters.low_rank import Adapter, Product
from pawl.gpu.backend import ForwardInputs, RefusedInputs
from pawl.gpu.devices import upload
from pawl.lifecycle.step import Int32s

Packed = TypeVar("Packed")


class StepAdapters(Protocol):
    """The adapters of a step, in one of its layers."""

    def at(self, layer: int) -> Self:
        """The same in another layer."""

    def of_rows(self, rows: Int32s) -> Self:
        """The same for these rows alone, rising int32 [m]."""

    def add(self, product: Product, rows: Tensor, output: Tensor) -> None:
        """Add to `output` [n, outputs] in place what each row's adapter makes of `rows` [n, inputs]."""


def added(adapters: StepAdapters | None, product: Product, rows: Tensor, output: Tensor) -> Tensor:
    """`output` itself, with what the adapters add to it."""
    if adapters is not None:
        adapters.add(product, rows, output)
    return output


def numbered(inputs: ForwardInputs, kind: type[Packed]) -> tuple[list[Packed], Int32s]:
    """The different adapters of a step, and for each row the number of its own in that list, int32 [t]; -1: none.

    Raises RefusedInputs for one that is not of the backend's `kind`.
    """
    found: dict[int, Packed] = {}
    numbers = []
    for adapter in inputs.adapters or ():
        if adapter is not None:
            if not isinstance(adapter, kind):
                raise RefusedInputs("an adapter that was packed for another backend")
            found.setdefault(id(adapter), adapter)
        numbers.append(-1 if adapter is None else list(found).index(id(adapter)))
    return list(found.values()), np.repeat(np.array(numbers, np.int32), inputs.lengths)


@dataclass(frozen=True, slots=True)
class TorchAdapters:
    """`StepAdapters` in plain torch: one adapter after the other, for all of its rows at once."""

    adapters: Sequence[Adapter]
    numbers: Int32s
    """[n], as `numbered` gives them."""
    rows: Sequence[Tensor]
    """For each adapter its rows, int64."""
    layer: int = 0

    @classmethod
    def of(cls, adapters: Sequence[Adapter], numbers: Int32s, device: torch.device) -> Self:
        """Rows of which row i goes through adapter numbers[i]."""
        return cls(adapters, numbers, [upload(np.flatnonzero(numbers == n), device) for n in range(len(adapters))])

    def at(self, layer: int) -> Self:
        """See `StepAdapters.at`."""
        return replace(self, layer=layer)

    def of_rows(self, rows: Int32s) -> Self:
        """See `StepAdapters.of_rows`."""
        return replace(self.of(self.adapters, self.numbers[rows], self.rows[0].device), layer=self.layer)

    def add(self, product: Product, rows: Tensor, output: Tensor) -> None:
        """See `StepAdapters.add`."""
        for adapter, own in zip(self.adapters, self.rows, strict=True):
            low = adapter.layers[self.layer].get(product)
            if low is not None and len(own):
                output.index_add_(0, own, F.linear(F.linear(rows[own], low.shrink), low.expand))
