"""Calls of every kernel with the shapes that models really have; tensors without memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from gpu.kernels import matmul as matmul_file
from gpu.kernels.decode import attend_decode
from gpu.kernels.matmul import matmul
from gpu.kernels.prefill import attend_segments

ROWS = 64
"""Requests of a batch."""


def processors_of_an_h200(device: torch.device) -> int:
    return 132


matmul_file.num_processors = processors_of_an_h200


def tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ints(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.int32)


def decode(heads: int, kv_heads: int, dim: int, page_size: int, window: int | None, soft_cap: float | None) -> None:
    """One token of each request, its query inside the row of query, key and value."""
    fused = tensor(ROWS, heads + 2 * kv_heads, dim)
    store = tensor(4096, page_size, kv_heads, dim)
    attend_decode(
        fused[:, :heads], store, store, ints(128, 32_768), ints(ROWS), ints(ROWS),
        scale=dim**-0.5, window=window, soft_cap=soft_cap, num_splits=64,
    )  # fmt: skip


def prefill(heads: int, kv_heads: int, dim: int, page_size: int, window: int | None, soft_cap: float | None) -> None:
    """A prompt beside one token of each other request."""
    fused = tensor(2048 + ROWS, heads + 2 * kv_heads, dim)
    store = tensor(4096, page_size, kv_heads, dim)
    attend_segments(
        fused[:, :heads], store, store, ints(128, 32_768), ints(ROWS), ints(ROWS), ints(ROWS + 1),
        scale=dim**-0.5, window=window, soft_cap=soft_cap,
    )  # fmt: skip


def multiply(rows: int, columns: int, inner: int, dtype: torch.dtype) -> None:
    matmul(tensor(rows, inner, dtype=dtype), tensor(columns, inner, dtype=dtype), bias=tensor(columns, dtype=dtype))


ATTENTION: dict[str, tuple[int, int, int, int, int | None, float | None]] = {
    "heads of 64, pages of 1": (9, 3, 64, 1, None, None),
    "heads of 96, pages of 16": (32, 32, 96, 16, None, None),
    "heads of 128, pages of 16": (32, 8, 128, 16, None, None),
    "heads of 128, pages of 64": (32, 8, 128, 64, 4096, None),
    "heads of 256, pages of 64": (4, 1, 256, 64, 512, 50.0),
    "heads of 256, pages of 1": (8, 4, 256, 1, 1024, None),
}

CASES: dict[str, Callable[[], None]] = {f"decode, {name}": partial(decode, *case) for name, case in ATTENTION.items()}
CASES |= {f"prefill, {name}": partial(prefill, *case) for name, case in ATTENTION.items()}
CASES |= {
    "matmul, few rows in pieces": partial(multiply, 64, 4096, 4096, torch.bfloat16),
    "matmul, few rows whole": partial(multiply, 64, 28_672, 4096, torch.bfloat16),
    "matmul, many rows": partial(multiply, 8192, 6144, 4096, torch.bfloat16),
    "matmul, odd": partial(multiply, 300, 1000, 1000, torch.bfloat16),
    "matmul, float32": partial(multiply, 300, 576, 1536, torch.float32),
}
