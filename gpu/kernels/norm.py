"""RMSNorm of the hidden rows, with the residual that comes before it."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pawl.gpu.kernels.machine import padded


@triton.jit
def rms_normed(values, weight, num_columns, epsilon):
    """Rows [n, columns] of any dtype, normed over the columns in float32, in the same dtype. Masked values are 0."""
    wide = values.to(tl.float32)
    mean_square = tl.sum(wide * wide, axis=1) / num_columns
    return (wide * tl.rsqrt(mean_square + epsilon)[:, None] * weight).to(values.dtype)


@triton.jit
def add_norm_kernel(
    hidden, delta, delta_weight, weight, normed, num_columns, epsilon,
    has_delta: tl.constexpr, has_delta_norm: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, block)[None]
    inside = columns < num_columns
    at = tl.program_id(0).to(tl.int64) * num_columns + columns
    values = tl.load(hidden + at, mask=inside, other=0.0)
    if has_delta:
        added = tl.load(delta + at, mask=inside, other=0.0)
        if has_delta_norm:
            own = tl.load(delta_weight + columns, mask=inside, other=0.0)
            added = rms_normed(added, own, num_columns, epsilon)
        values = (values.to(tl.float32) + added.to(tl.float32)).to(values.dtype)
        tl.store(hidden + at, values, mask=inside)
    scale = tl.load(weight + columns, mask=inside, other=0.0)
    tl.store(normed + at, rms_normed(values, scale, num_columns, epsilon), mask=inside)


def add_norm(
    hidden: Tensor, delta: Tensor | None, weight: Tensor, epsilon: float, *, delta_weight: Tensor | None = None
) -> Tensor:
    """Adds `delta`, normed first where it has a weight, to `hidden` in place; returns hidden's norm.

    hidden, delta [n, columns] contiguous, of one dtype; weights float32 [columns]. Returns as hidden.
    """
    normed = torch.empty_like(hidden)
    num_rows, num_columns = hidden.shape
    if num_rows:
        block = padded(num_columns)
        add_norm_kernel[(num_rows,)](
            hidden, hidden if delta is None else delta, weight if delta_weight is None else delta_weight, weight,
            normed, num_columns, epsilon, has_delta=delta is not None, has_delta_norm=delta_weight is not None,
            block=block, num_warps=min(16, max(4, block // 512)),
        )  # fmt: skip
    return normed
