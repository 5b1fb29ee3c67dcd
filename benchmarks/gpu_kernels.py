"""Each kernel by itself, at the sizes of an 8B model, in percent of what the device could do."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu_limits import BF16, LLAMA_8B, attention_operations, share_of_limit
from benchmarks.gpu_timing import DEVICE, device_ms
from benchmarks.harness import Result, Spread
from pawl.gpu.kernels.activation import gated
from pawl.gpu.kernels.decode import attend_decode, splits_for
from pawl.gpu.kernels.matmul import matmul
from pawl.gpu.kernels.norm import add_norm
from pawl.gpu.kernels.prefill import attend_segments

PAGE = 16
ROWS = 8192


def bfloat16(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.bfloat16, device=DEVICE)


def int32(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=DEVICE)


def measured(name: str, work: Callable[[], object], least_s: float, goal: float | None) -> Result:
    """A line for a kernel that must take `least_s` seconds at the least."""
    times = device_ms(work)
    shares = Spread(*(share_of_limit(least_s, time / 1e3) for time in (times.median, times.high, times.low)))
    return Result(name, shares, "% of limit", target=goal, higher_is_better=True)


def pages_for(rows: int, context: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys and values of `rows` requests of `context` tokens, and a table in which their pages lie scattered."""
    per_row = -(-context // PAGE)
    shape = (rows * per_row, PAGE, LLAMA_8B.num_kv_heads, LLAMA_8B.head_dim)
    table = torch.randperm(rows * per_row, device=DEVICE).to(torch.int32).view(rows, per_row)
    return bfloat16(*shape), bfloat16(*shape), table


def decode_attention(rows: int, context: int, bandwidth: float) -> Result:
    """The goal of 85 % is for 32k tokens of context."""
    config = LLAMA_8B
    keys, values, table = pages_for(rows, context)
    query = bfloat16(rows, config.num_heads, config.head_dim)
    slots = torch.arange(rows, dtype=torch.int32, device=DEVICE)
    positions = torch.full((rows,), context - 1, dtype=torch.int32, device=DEVICE)

    def work() -> object:
        return attend_decode(
            query, keys, values, table, slots, positions,
            scale=config.query_scale, window=None, soft_cap=None, num_splits=splits_for(context),
        )  # fmt: skip

    least = 2 * rows * context * config.kv_size * BF16 / bandwidth
    goal = 85.0 if context >= 32_768 else None
    return measured(f"decode attention, {rows} x {context}", work, least, goal)


def prefill_attention(tokens: int, rate: float) -> Result:
    """One prompt, causal."""
    config = LLAMA_8B
    keys, values, table = pages_for(1, tokens)
    query = bfloat16(tokens, config.num_heads, config.head_dim)
    slots, starts, offsets = int32(0), int32(0), int32(0, tokens)

    def work() -> object:
        return attend_segments(
            query, keys, values, table, slots, starts, offsets,
            scale=config.query_scale, window=None, soft_cap=None,
        )  # fmt: skip

    return measured(f"prefill attention, {tokens}", work, attention_operations(config, tokens) / rate, 50.0)


def kernel_results(bandwidth: float, rate: float) -> list[Result]:
    """All kernels. bandwidth in bytes a second, rate in operations a second."""
    hidden, inner = LLAMA_8B.hidden_size, LLAMA_8B.intermediate_size
    rows, delta, weight = bfloat16(ROWS, hidden), bfloat16(ROWS, hidden), torch.ones(hidden, device=DEVICE)
    both, down = bfloat16(ROWS, 2 * inner), bfloat16(hidden, inner)
    narrow, wide = bfloat16(16, inner), bfloat16(ROWS, inner)
    epsilon = LLAMA_8B.norm_epsilon
    return [
        measured(
            "norm with residual", lambda: add_norm(rows, delta, weight, epsilon), 4 * rows.nbytes / bandwidth, 80.0
        ),
        measured("gated activation", lambda: gated(both, "silu"), 1.5 * both.nbytes / bandwidth, 80.0),
        decode_attention(64, 1024, bandwidth),
        decode_attention(16, 32_768, bandwidth),
        decode_attention(1, 32_768, bandwidth),
        prefill_attention(8192, rate),
        measured("fixed-order product, 16 rows", lambda: matmul(narrow, down), down.nbytes / bandwidth, 80.0),
        measured(
            f"fixed-order product, {ROWS} rows", lambda: matmul(wide, down), 2 * ROWS * hidden * inner / rate, 70.0
        ),
    ]
