"""An empty decoder of the compiled kernels: the numbers that it is made from, of a model and of a rank's share."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.dtypes import BFLOAT16
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig, Rope
from pawl.gpu.native.bindings import Library, Part, Shape
from pawl.gpu.native.pointers import pointer
from pawl.gpu.parallel.shard import Shard
from pawl.gpu.parallel.topology import Topology

if TYPE_CHECKING:
    from pawl.gpu.parallel.rank import Rank


def create(
    library: Library, config: ModelConfig, kv: KvStore, threads: int, rank: Rank | None, handle: ctypes.c_void_p
) -> bytes | None:
    """Make an empty decoder behind `handle`; None, or what went wrong."""
    shard = Shard(config, Topology(), 0, gathers=True) if rank is None else rank.shard
    expert_parts = expert_parts_of(config, shard)
    ropes: list[Rope] = list(dict.fromkeys(config.rope_of(layer) for layer in range(config.num_layers)))
    windows = np.array([window or 0 for window in config.windows], np.int32)
    rope_of_layer = np.array([ropes.index(config.rope_of(layer)) for layer in range(config.num_layers)], np.int32)
    frequencies = np.concatenate([rope.inverse_frequencies(config.head_dim) for rope in ropes])
    experts = config.experts
    expert_layers = np.array([config.experts_of(layer) is not None for layer in range(config.num_layers)], np.int32)
    shape = Shape(
        bf16=kv.dtype == BFLOAT16,
        gelu_tanh=config.activation == "gelu_tanh",
        num_ropes=len(ropes),
        num_pages=kv.num_pages,
        page_size=kv.page_size,
        threads=threads,
        num_window_pages=kv.num_window_pages or 0,
        kv=kv.full.memory.ctypes.data,
        window_kv=None if kv.window is None else kv.window.memory.ctypes.data,
        windows=pointer(windows),
        rope_of_layer=pointer(rope_of_layer),
        expert_layers=pointer(expert_layers),
        num_experts=experts.count if experts else 0,
        experts_per_row=experts.chosen if experts else 0,
        expert_size=experts.size if experts else 0,
        normalised_shares=experts.normalised if experts else 0,
        inverse_frequencies=pointer(frequencies),
        heads=_part(shard.heads),
        kv_heads=_part(shard.groups),
        columns=_part(shard.outputs),
        inner=_part(shard.columns(config.intermediate_size)),
        vocabulary=_part(shard.vocabulary),
        expert_inner=_part(shard.expert_columns(experts.size if experts else 0)),
        expert_columns=_part(shard.expert_outputs),
        expert_parts=pointer(expert_parts),
        part=shard.part,
        ranks=None if rank is None or rank.joined is None else rank.joined.handle,
        num_heads=shard.whole.num_heads,
        num_kv_heads=shard.whole.num_kv_heads,
        **{name: getattr(config, name) for name in _COPIED},
    )
    message: bytes | None = library.create(ctypes.byref(shape), ctypes.byref(handle))
    return message


def expert_parts_of(config: ModelConfig, shard: Shard) -> NDArray[np.uint32]:
    """For each layer of a rank and each expert: a bit for each part that has it."""
    found = np.zeros((config.num_layers, config.experts.count if config.experts else 0), np.uint32)
    for layer in range(config.num_layers):
        for expert, owners in enumerate(shard.placed(shard.layers[layer])):
            found[layer, expert] = sum(1 << part for part in owners)
    return found


_COPIED = (
    "vocab_size",
    "hidden_size",
    "num_layers",
    "head_dim",
    "intermediate_size",
    "qkv_bias",
    "qk_norm",
    "sandwich_norms",
    "tied_embeddings",
    "norm_epsilon",
    "embedding_scale",
    "query_scale",
)
"""Fields that a ModelConfig and a Shape have under the same name."""


def _part(columns: range) -> Part:
    return Part(columns.start, len(columns))
