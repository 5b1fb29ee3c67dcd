"""The gated activation between the two halves of an MLP."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pawl.gpu.models.config import Activation

BLOCK = 1024
SQRT_2_OVER_PI = tl.constexpr(0.7978845608028654)


@triton.jit
def gated_kernel(gate_up, output, num_columns, gelu: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < num_columns
    gate = tl.load(gate_up + row * 2 * num_columns + columns, mask=inside, other=0.0)
    up = tl.load(gate_up + (row * 2 + 1) * num_columns + columns, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    if gelu:
        # x * (1 + tanh(u)) / 2 = x * sigmoid(2 u)
        inner = SQRT_2_OVER_PI * (wide + 0.044715 * wide * wide * wide)
        opened = wide * tl.sigmoid(2.0 * inner)
    else:
        opened = wide * tl.sigmoid(wide)
    # Rounded between the two steps, as the plain decoder does.
    gated = opened.to(gate.dtype).to(tl.float32) * up.to(tl.float32)
    tl.store(output + row * num_columns + columns, gated.to(gate.dtype), mask=inside)


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """activation(gate) * up: [n, inner] from [n, 2 * inner] contiguous, gates first."""
    num_rows, num_columns = gate_up.shape[0], gate_up.shape[1] // 2
    output = torch.empty((num_rows, num_columns), dtype=gate_up.dtype, device=gate_up.device)
    if num_rows:
        grid = (num_rows, triton.cdiv(num_columns, BLOCK))
        gated_kernel[grid](gate_up, output, num_columns, gelu=activation == "gelu_tanh", block=BLOCK)
    return output
