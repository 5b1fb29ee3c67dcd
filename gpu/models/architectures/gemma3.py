"""Gemma 3, text only: windows in most layers, with a rope of their own, and norms on both sides of each part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from pawl.gpu.models.architectures.base import Architecture, GgufRow
from pawl.gpu.models.config import ModelConfig, Rope
from pawl.gpu.models.facts import Facts

# Facts that GGUF files leave out.
_LOCAL_BASE = 10_000.0
_PATTERN = 6
_27B_LAYERS = 62


def _pattern(facts: Facts, num_layers: int) -> Sequence[bool] | None:
    """All layers but each sixth, or where the file says."""
    pattern = facts.whole("sliding_window_pattern", _PATTERN)
    return tuple((layer + 1) % pattern != 0 for layer in range(num_layers))


def _refine(facts: Facts, config: ModelConfig) -> ModelConfig:
    return msgspec.structs.replace(
        config,
        embedding_scale=math.sqrt(config.hidden_size),
        query_scale=facts.number("query_pre_attn_scalar") ** -0.5,
    )


def _refine_gguf(_: Facts, config: ModelConfig) -> ModelConfig:
    # The file names one window for all layers.
    windows = tuple(None if (layer + 1) % _PATTERN == 0 else window for layer, window in enumerate(config.windows))
    large = config.num_layers == _27B_LAYERS
    return msgspec.structs.replace(
        config,
        local_rope=Rope(_LOCAL_BASE),
        windows=windows,
        activation="gelu_tanh",
        embedding_scale=math.sqrt(config.hidden_size),
        query_scale=(config.hidden_size / config.num_heads if large else config.head_dim) ** -0.5,
    )


GEMMA3 = Architecture(
    name="gemma3",
    model_type="gemma3_text",
    defaults={
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "tie_word_embeddings": True,
    },
    fixed={"qk_norm": True, "sandwich_norms": True},
    windows=_pattern,
    refine=_refine,
    norm_offset=1.0,
    gguf=GgufRow(
        name="gemma3",
        refine=_refine_gguf,
        layer_names={
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
)
