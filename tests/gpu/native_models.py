"""Random models made for the compiled kernels: sizes that fit no tile, and every switch of the record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor

from pawl.gpu.backend import Backend, ForwardInputs
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import Experts, ModelConfig, Rope
from pawl.gpu.models.small import llama_config, random_weights
from pawl.gpu.native.backend import NativeBackend
from pawl.gpu.weights.blocks import Weights
from pawl.lifecycle.step import Int32s
from tests.gpu.driving import Piece, forward_inputs

ODD = llama_config(hidden_size=51, num_heads=6, num_kv_heads=2, head_dim=10, intermediate_size=77, max_position=4096)
"""No width is a multiple of a tile; an odd depth leaves half a bfloat16 pair."""

SWITCHED = msgspec.structs.replace(
    ODD,
    head_dim=48,
    hidden_size=64,
    num_heads=4,
    num_layers=3,
    local_rope=Rope(100.0, (2.0,) * 24),
    windows=(5, 70, None),
    activation="gelu_tanh",
    qkv_bias=True,
    qk_norm=True,
    sandwich_norms=True,
    tied_embeddings=True,
    embedding_scale=8.0,
)
"""Everything that can be switched on is."""

HYBRID = msgspec.structs.replace(SWITCHED, num_layers=4, windows=(13, None, 5, None))
"""Layers of both kinds in turn; the window that counts is not the last one, and no multiple of a page."""

WINDOWED = msgspec.structs.replace(ODD, windows=(20, 70), head_dim=64, query_scale=0.125)
"""No layer sees further back than 70 tokens."""

GROUPED = llama_config(
    hidden_size=64, num_heads=30, num_kv_heads=6, head_dim=32, intermediate_size=96, max_position=4096
)
"""Five query heads share a key head, of which there are many."""

SHARED = msgspec.structs.replace(GROUPED, num_heads=8, num_kv_heads=1, head_dim=64, query_scale=0.125)
"""Eight query heads share the one key head."""

EXPERTS = msgspec.structs.replace(
    ODD,
    num_layers=3,
    windows=(None, None, None),
    experts=Experts(count=37, chosen=3, size=45, normalised=False, layers=(True, False, True)),
)
"""More experts than a panel has columns; layers with and without."""


class Native(NativeBackend):
    """The compiled kernels on tensors, so that one test can drive them and plain torch."""

    def forward(self, inputs: ForwardInputs) -> Tensor:  # type: ignore[override]
        """See `Backend.forward`."""
        return torch.from_numpy(super().forward(_in_numpy(inputs)))

    def forward_greedy(self, inputs: ForwardInputs) -> Tensor:  # type: ignore[override]
        """See `GreedyBackend.forward_greedy`."""
        return torch.from_numpy(super().forward_greedy(_in_numpy(inputs)))

    def hidden(self, inputs: ForwardInputs) -> Tensor:  # type: ignore[override]
        """See `Backend.hidden`."""
        return torch.from_numpy(super().hidden(_in_numpy(inputs)))


def _in_numpy(inputs: ForwardInputs) -> ForwardInputs:
    arrays = {
        name: value.numpy() for name in ("tokens", "expert_counts") if torch.is_tensor(value := getattr(inputs, name))
    }
    return replace(inputs, **arrays)


@dataclass(frozen=True)
class Made:
    """A backend with its store, and a page table in which every slot owns its pages, in no order."""

    backend: Any
    kv: KvStore
    table: Int32s


def make(
    config: ModelConfig,
    dtype: torch.dtype,
    *,
    kind: Any = Native,
    threads: int = 1,
    num_slots: int = 4,
    context: int = 160,
    page_size: int = 16,
    weights: Weights | None = None,
    num_window_pages: int | None = None,
    device: str = "cpu",
) -> Made:
    """A backend of class `kind` with room for `num_slots` sequences of `context` tokens."""
    pages = -(-context // page_size)
    kv = KvStore(
        config,
        num_pages=num_slots * pages,
        page_size=page_size,
        dtype=dtype,
        device=device,
        num_window_pages=num_window_pages,
    )
    order = np.random.default_rng(3).permutation(kv.num_pages)
    table = order.reshape(num_slots, pages).astype(np.int32)
    return Made(kind(config, weights or random_weights(config, dtype), kv, threads=threads), kv, table)


def alone(backend: Backend, table: Int32s, slot: int, tokens: list[int]) -> Tensor:
    """Logits of every position of one sequence, computed in one pass by itself."""
    return backend.forward(forward_inputs([Piece(slot, 0, tokens)], table))
