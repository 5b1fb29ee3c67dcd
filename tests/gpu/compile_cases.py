"""Calls of every kernel with the shapes that models really have; tensors without memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
import torch
from torch import Tensor

from pawl.gpu.kernels import matmul as matmul_file
from pawl.gpu.kernels import prefill as prefill_file
from pawl.gpu.kernels.activation import gated
from pawl.gpu.kernels.decode import attend_decode
from pawl.gpu.kernels.experts import experts_forward, route
from pawl.gpu.kernels.low_rank import Blocks, add_low_rank
from pawl.gpu.kernels.matmul import matmul
from pawl.gpu.kernels.norm import add_norm
from pawl.gpu.kernels.prefill import attend_segments
from pawl.gpu.kernels.rotary import turn_and_store
from pawl.gpu.kernels.sampling import draw, likeliest
from pawl.gpu.kernels.tokens import remember, resolve
from tests.gpu.native_models import ODD, SWITCHED

ROWS = 64
"""Requests of a batch."""


def processors_of_an_h200(device: torch.device) -> int:
    return 132


matmul_file.num_processors = processors_of_an_h200


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.int32)


def decode(
    heads: int,
    kv_heads: int,
    dim: int,
    page_size: int,
    window: int | None,
    soft_cap: float | None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """One token of each request, its query inside the row of query, key and value."""
    fused = tensor(ROWS, heads + 2 * kv_heads, dim, dtype=dtype)
    store = tensor(4096, page_size, kv_heads, dim, dtype=dtype)
    attend_decode(
        fused[:, :heads], store, store, ints(128, 32_768), ints(ROWS), ints(ROWS),
        scale=dim**-0.5, window=window, soft_cap=soft_cap, num_splits=64,
    )  # fmt: skip


def prefill(
    heads: int,
    kv_heads: int,
    dim: int,
    page_size: int,
    window: int | None,
    soft_cap: float | None,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """A prompt beside one token of each other request."""
    fused = tensor(2048 + ROWS, heads + 2 * kv_heads, dim, dtype=dtype)
    store = tensor(4096, page_size, kv_heads, dim, dtype=dtype)
    attend_segments(
        fused[:, :heads], store, store, ints(128, 32_768), ints(ROWS), ints(ROWS), ints(ROWS + 1),
        scale=dim**-0.5, window=window, soft_cap=soft_cap,
    )  # fmt: skip


def multiply(rows: int, columns: int, inner: int, dtype: torch.dtype) -> None:
    matmul(tensor(rows, inner, dtype=dtype), tensor(columns, inner, dtype=dtype), bias=tensor(columns, dtype=dtype))


def rows(heads: int, kv_heads: int, dim: int, hidden: int, *, switched: bool) -> None:
    """What happens to each row by itself between the products of a layer."""
    config = msgspec.structs.replace(
        SWITCHED if switched else ODD,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=dim,
        hidden_size=hidden,
        local_rope=None,
    )
    norm = tensor(dim, dtype=torch.float32) if switched else None
    store = tensor(4096, 16, kv_heads, dim)
    turn_and_store(
        config, tensor(ROWS, (heads + 2 * kv_heads) * dim), ints(ROWS), ints(ROWS),
        tensor(dim // 2, dtype=torch.float32), store, store, query_norm=norm, key_norm=norm,
    )  # fmt: skip
    weight = tensor(hidden, dtype=torch.float32)
    add_norm(tensor(ROWS, hidden), None, weight, 1e-5)
    add_norm(tensor(ROWS, hidden), tensor(ROWS, hidden), weight, 1e-5, delta_weight=weight if switched else None)
    gated(tensor(ROWS, 7 * hidden), config.activation)


def tokens() -> None:
    resolve(ints(5000), ints(128))
    remember(ints(128), ints(ROWS), ints(ROWS))


def experts(count: int, chosen: int, hidden: int, inner: int, num_rows: int) -> None:
    numbers, shares = route(tensor(num_rows, count), chosen, True, positions=ints(num_rows))
    experts_forward(
        tensor(num_rows, hidden),
        tensor(count, 2 * inner, hidden),
        tensor(count, hidden, inner),
        numbers,
        shares,
        "silu",
    )


def low_rank(columns: int, inner: int, widest: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """Some rows of a decode step go through four adapters."""
    table = tensor(4, 4 * 32, 3, dtype=torch.int64)
    blocks = Blocks(ints(ROWS // 2), ints(4, 3))
    add_low_rank(tensor(ROWS, inner, dtype=dtype), tensor(ROWS, columns, dtype=dtype), blocks, table, 7, widest)


def sample() -> None:
    """A batch with a vocabulary as large as that of Llama 3."""
    logits, numbers = tensor(ROWS, 128_256, dtype=torch.float32), tensor(ROWS, dtype=torch.float32)
    draw(
        logits, temperature=numbers, top_k=ints(ROWS), top_p=numbers, min_p=numbers, keys=ints(ROWS, 2),
        greedy=tensor(ROWS, dtype=torch.bool),
    )  # fmt: skip
    likeliest(tensor(ROWS, 128_256))


def too_much() -> None:
    """More than a program's registers hold. For a process that compiles nothing else."""
    prefill_file.KEY_TILE = 256
    prefill(8, 4, 256, 1, None, None)


ATTENTION: dict[str, tuple[Any, ...]] = {
    "heads of 64, pages of 1": (9, 3, 64, 1, None, None),
    "heads of 128, pages of 16": (32, 8, 128, 16, None, None),
    "heads of 256, pages of 64": (4, 1, 256, 64, 512, 50.0),
}
MORE_ATTENTION: dict[str, tuple[Any, ...]] = {
    "heads of 96, pages of 16": (32, 32, 96, 16, None, None),
    "heads of 128, pages of 1": (32, 8, 128, 1, 4096, 30.0),
    "heads of 128, pages of 64": (32, 8, 128, 64, 4096, None),
    "heads of 256, pages of 1": (8, 4, 256, 1, 1024, None),
    "heads of 256, pages of 16": (8, 4, 256, 16, None, None),
    "heads of 64, pages of 64, float32": (14, 2, 64, 64, None, None, torch.float32),
    "heads of 256, pages of 16, float32": (4, 1, 256, 16, 512, None, torch.float32),
    "heads of 128, pages of 16, float32": (32, 8, 128, 16, None, None, torch.float32),
}


def both(shapes: dict[str, tuple[Any, ...]]) -> dict[str, Callable[[], None]]:
    """Both kinds of attention for each of the shapes."""
    calls = {f"decode, {name}": partial(decode, *shape) for name, shape in shapes.items()}
    return calls | {f"prefill, {name}": partial(prefill, *shape) for name, shape in shapes.items()}


CASES = both(ATTENTION) | {
    "rows of 8B": partial(rows, 32, 8, 128, 4096, switched=False),
    "rows of Gemma": partial(rows, 4, 1, 256, 640, switched=True),
    "tokens": tokens,
    "sampling": sample,
    "experts of 30B-A3B": partial(experts, 128, 8, 2048, 768, ROWS),
    "adapters": partial(low_rank, 6144, 4096, 192),
    "matmul, few rows in pieces": partial(multiply, 64, 4096, 4096, torch.bfloat16),
    "matmul, few rows whole": partial(multiply, 64, 28_672, 4096, torch.bfloat16),
    "matmul, many rows": partial(multiply, 8192, 6144, 4096, torch.bfloat16),
}
MORE_CASES = both(MORE_ATTENTION) | {
    "experts of Mixtral": partial(experts, 8, 2, 4096, 14_336, 4000),
    "rows of 70B": partial(rows, 64, 8, 128, 8192, switched=True),
    "adapters, float32": partial(low_rank, 576, 1536, 32, torch.float32),
    "matmul, odd": partial(multiply, 300, 1000, 1000, torch.bfloat16),
    "matmul, float32": partial(multiply, 300, 576, 1536, torch.float32),
    "matmul, few rows, float32": partial(multiply, 3, 576, 4096, torch.float32),
}
CANARY = {"too much": too_much}
