"""Where kernels are tested: on a device where there is one, else under Triton's interpreter. And what they meet there:
memory in which everything that nobody wrote, or that is not the row's own, is NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pawl.gpu.kernels.machine import interpreted

DEVICE = "cpu" if interpreted() else "cuda"
DTYPES = (torch.float32, torch.bfloat16)


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers, the same on every machine."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype).to(DEVICE)


def ints(numbers: Sequence[int]) -> Tensor:
    """int32 on the device."""
    return torch.tensor(list(numbers), dtype=torch.int32, device=DEVICE)


def close(found: Tensor, expected: Tensor, steps: float = 2) -> bool:
    """Equal but for some rounding steps of the dtype."""
    epsilon = torch.finfo(found.dtype).eps if found.dtype.is_floating_point else 0.0
    if found.dtype == torch.float32:
        epsilon = 2e-6
    return torch.allclose(found.float().cpu(), expected.float().cpu(), rtol=steps * epsilon, atol=steps * epsilon)


def sum_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on every sum of Triton's interpreter adds in one order, from the first to the last, as a device's
    instruction has one order. The interpreter's own `tl.dot` is numpy's matrix product, whose order depends on the
    processor, the BLAS and the number of rows, and its `tl.sum` adds in an order that depends on strides."""
    from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, TensorHandle

    def dot(_: Any, left: Any, right: Any, added: Any, *_precision: Any) -> Any:
        total = np.zeros_like(added.data)
        for index in range(left.data.shape[1]):
            total += left.data[:, index, None] * right.data[None, index]
        return TensorHandle(total + added.data, added.dtype.scalar)

    plain_sum = ReduceOps.sum

    def reduce_sum(own: Any, summed: Any) -> Any:
        data = summed.handle.data
        if data.dtype.kind != "f":
            return plain_sum(own, summed)
        axis = 0 if own.axis is None else own.axis
        flat = data.reshape(-1) if own.axis is None else data
        total = np.add.accumulate(flat, axis=axis, dtype=data.dtype).take(-1, axis=axis)
        if own.keep_dims:
            total = total.reshape((1,) * data.ndim) if own.axis is None else np.expand_dims(total, axis)
        return own.to_tensor(total, summed.dtype)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot)
    monkeypatch.setattr(ReduceOps, "sum", reduce_sum)


class NothingIsZeroed(TorchFunctionMode):
    """Fresh memory is full of NaN, or of a number that is no index: what a kernel does not write shows."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.empty_like):
            made.fill_(float("nan") if made.dtype.is_floating_point else 77_777_777)
        return made


@dataclass(frozen=True)
class Shape:
    """Of one attention layer, and of its pages."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    page_size: int
    window: int | None = None
    soft_cap: float | None = None

    @property
    def scale(self) -> float:
        return float(self.head_dim**-0.5)

    @property
    def options(self) -> dict[str, float | int | None]:
        """As both kernels take them."""
        return {"scale": self.scale, "window": self.window, "soft_cap": self.soft_cap}


SHAPES = {
    "group-of-3": Shape(6, 2, 10, 16),
    "page-of-1": Shape(2, 2, 16, 1, window=70),
    "page-of-64": Shape(4, 1, 48, 64, window=5, soft_cap=3.0),
    "page-of-7": Shape(2, 1, 64, 7, soft_cap=2.0),
}
LARGE_SHAPES = {
    "8B": Shape(32, 8, 128, 16),
    "small": Shape(9, 3, 64, 1),
    "windowed": Shape(8, 4, 256, 64, window=1024),
    "odd": Shape(14, 2, 96, 16, window=700, soft_cap=30.0),
}


class Slots:
    """Slots with `contexts` tokens each, in pages that lie about in no order. All else in the store is NaN."""

    def __init__(self, shape: Shape, contexts: Sequence[int], dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.contexts = shape, list(contexts)
        size = shape.page_size
        pages = [-(-context // size) for context in contexts]
        # The last page is nobody's, and it is where entries beyond a slot's length point.
        order = torch.randperm(sum(pages) + 3, generator=torch.Generator().manual_seed(1)).int()
        self.nobodys = int(order[-1])
        self.table = torch.full((len(pages), max(pages) + 70), self.nobodys, dtype=torch.int32)
        for slot, own in enumerate(order[: sum(pages)].split(pages)):
            self.table[slot, : len(own)] = own
        store = torch.full((2, len(order) * size, shape.num_kv_heads, shape.head_dim), float("nan"), dtype=dtype)
        self.numbers = [random(2, n, *store.shape[2:], dtype=dtype, seed=9 + i) for i, n in enumerate(contexts)]
        for slot, numbers in enumerate(self.numbers):
            positions = torch.arange(self.contexts[slot])
            store[:, self.table[slot, positions // size] * size + positions % size] = numbers.cpu()
        self.keys, self.values = store.view(2, len(order), size, *store.shape[2:]).to(DEVICE)
        self.table = self.table.to(DEVICE)

    def hide_before(self, slot: int, position: int) -> None:
        """Pages before the one of `position` are somebody else's by now, as behind a window."""
        self.table[slot, : position // self.shape.page_size] = self.nobodys

    def attended(self, query: Tensor, slot: int, position: int) -> Tensor:
        """What the row with `query` [heads, head_dim] is to get, float32 [heads * head_dim]: plain, in float64."""
        shape = self.shape
        first = 0 if shape.window is None else max(0, position + 1 - shape.window)
        keys, values = self.numbers[slot][:, first : position + 1].double()
        group = shape.num_heads // shape.num_kv_heads
        keys, values = (numbers.repeat_interleave(group, 1) for numbers in (keys, values))
        scores = torch.einsum("hd,khd->hk", query.double(), keys) * shape.scale
        if shape.soft_cap is not None:
            scores = shape.soft_cap * (scores / shape.soft_cap).tanh()
        return torch.einsum("hk,khd->hd", scores.softmax(-1), values).flatten().float()


def attention_close(found: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding: in bfloat16 the weights of keys are rounded as well."""
    limit = 2e-2 if found.dtype == torch.bfloat16 else 5e-6
    return torch.allclose(found.float(), expected, rtol=limit, atol=limit)
