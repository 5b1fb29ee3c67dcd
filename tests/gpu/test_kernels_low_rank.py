"""What the kernels of adapters add is right, and a row's bits are its own, whatever rows and adapters are beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pawl.gpu.adapters.low_rank import Adapter, LowRank
from pawl.gpu.cuda.adapters import KernelAdapter, KernelAdapters
from pawl.lifecycle.step import Int32s
from tests.gpu.driving import int32
from tests.gpu.kernel_tools import DEVICE, DTYPES, NothingIsZeroed, random

pytestmark = pytest.mark.usefixtures("sums_in_order")

INPUTS, OUTPUTS = 77, 150


def adapter(rank: int, seed: int) -> Adapter:
    """Changes the second product of layer 1, and nothing else."""
    low = LowRank(random(rank, INPUTS, seed=seed).cpu() * 0.2, random(OUTPUTS, rank, seed=seed + 1).cpu() * 0.2)
    return Adapter(str(seed), ({}, {"output": low}))


def add(adapters: list[KernelAdapter], numbers: Int32s, rows: Tensor, output: Tensor, layer: int = 1) -> Tensor:
    found = output.clone()
    with NothingIsZeroed():
        KernelAdapters.of(adapters, numbers, torch.device(DEVICE)).at(layer).add("output", rows, found)
    return found


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_many_adapters_are_right_and_have_their_own_bits(dtype: torch.dtype) -> None:
    ours = [adapter(rank, seed) for seed, rank in ((1, 3), (5, 70), (9, 64))]
    packed = [KernelAdapter(one, dtype, torch.device(DEVICE)) for one in ours]
    numbers = np.array([0, 1, -1, 0, 2, *[1] * 70], np.int32)
    rows, output = random(len(numbers), INPUTS, dtype=dtype), random(len(numbers), OUTPUTS, dtype=dtype, seed=2)
    found = add(packed, numbers, rows, output)
    assert torch.equal(found[2], output[2]), "a row without an adapter is not touched"
    for row in (0, 1, 3, 4, 5, 74):
        low = ours[numbers[row]].layers[1]["output"]
        shrink, expand = (part.to(DEVICE, dtype).double() for part in low)
        expected = output[row].double() + (rows[row].double() @ shrink.T) @ expand.T
        limit = 2e-5 if dtype == torch.float32 else 0.15
        torch.testing.assert_close(found[row].double(), expected, rtol=limit, atol=limit)
        own = slice(row, row + 1)
        alone = add([packed[numbers[row]]], int32(0), rows[own], output[own])
        assert torch.equal(alone[0], found[row])


def test_a_layer_that_no_adapter_changes_stays_as_it_is() -> None:
    packed = [KernelAdapter(adapter(4, 1), torch.float32, torch.device(DEVICE))]
    rows, output = random(2, INPUTS), random(2, OUTPUTS, seed=1)
    assert torch.equal(add(packed, int32(0, 0), rows, output, layer=0), output)


def test_an_adapter_without_the_product_adds_nothing_beside_one_that_has_it() -> None:
    other = Adapter("other", ({}, {"down": adapter(4, 3).layers[1]["output"]}))
    packed = [KernelAdapter(one, torch.float32, torch.device(DEVICE)) for one in (adapter(4, 1), other)]
    rows, output = random(2, INPUTS), random(2, OUTPUTS, seed=1)
    found = add(packed, int32(0, 1), rows, output)
    assert torch.equal(found[1], output[1])
    assert not torch.equal(found[0], output[0])
