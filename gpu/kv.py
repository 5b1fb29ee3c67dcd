"""Where keys and values live: pages of a fixed number of tokens, one allocation for all layers.

    store.data  [layers, 2, pages, page_size, kv_heads, head_dim]
                         |
                         0 keys (after rope), 1 values

The token at position p of slot s is entry p % page_size of page table[s, p // page_size]. Which page belongs to whom is
the scheduler's business; here page 0 is a page like any other, and an entry beyond a slot's length means nothing.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np
import torch
from torch import Tensor

from gpu.models.config import ModelConfig


class KvDoesNotFit(Exception):
    """The budget does not hold even one page."""

    def __init__(self, budget_bytes: int, page_bytes: int) -> None:
        super().__init__(f"a KV budget of {budget_bytes:,} bytes does not hold one page of {page_bytes:,} bytes")
        self.budget_bytes = budget_bytes
        self.page_bytes = page_bytes


class MemoryPlan(msgspec.Struct, frozen=True):
    """What a KV budget buys."""

    num_pages: int
    page_size: int
    page_bytes: int

    @property
    def num_tokens(self) -> int:
        return self.num_pages * self.page_size

    @property
    def num_bytes(self) -> int:
        return self.num_pages * self.page_bytes


def kv_bytes_per_token(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that one token's keys and values take over all layers."""
    return 2 * config.num_layers * config.kv_size * dtype.itemsize


def plan_memory(config: ModelConfig, dtype: torch.dtype, page_size: int, budget_bytes: int) -> MemoryPlan:
    """How many whole pages fit `budget_bytes`. Raises KvDoesNotFit when none does."""
    page_bytes = kv_bytes_per_token(config, dtype) * page_size
    if budget_bytes < page_bytes:
        raise KvDoesNotFit(budget_bytes, page_bytes)
    return MemoryPlan(budget_bytes // page_bytes, page_size, page_bytes)


class KvStore:
    """The pages of every layer, zeroed at the start."""

    def __init__(
        self, config: ModelConfig, *, num_pages: int, page_size: int, dtype: torch.dtype, device: torch.device | str
    ) -> None:
        shape = (config.num_layers, 2, num_pages, page_size, config.num_kv_heads, config.head_dim)
        self.data = _zeros(shape, dtype, torch.device(device))
        self.num_pages = num_pages
        self.page_size = page_size

    def keys(self, layer: int) -> Tensor:
        """[pages, page_size, kv_heads, head_dim], contiguous, a view."""
        return self.data[layer, 0]

    def values(self, layer: int) -> Tensor:
        """[pages, page_size, kv_heads, head_dim], contiguous, a view."""
        return self.data[layer, 1]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on the CPU memory that the system maps page by page as it is first written, so that a large store costs
    what is used of it."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)
