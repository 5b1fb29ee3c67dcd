"""Qwen 2 (biases), Qwen 3 (norms of heads) and Qwen 3 with experts."""

from __future__ import annotations

from collections.abc import Sequence

from pawl.gpu.models.architectures.base import Architecture, GgufRow, all_windowed, sparse_layers
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.facts import Facts

_WINDOWS = {"max_position_embeddings": 32_768, "sliding_window": 4096, "max_window_layers": 28}


def _upper_layers(facts: Facts, num_layers: int) -> Sequence[bool] | None:
    """Windows where the file switches them on, in the layers from `max_window_layers` on."""
    if not facts.flag("use_sliding_window"):
        return None
    first = facts.whole("max_window_layers", least=0)
    return tuple(layer >= first for layer in range(num_layers))


def _every_layer(facts: Facts, num_layers: int) -> Sequence[bool] | None:
    return all_windowed(facts, num_layers) if facts.flag("use_sliding_window") else None


def _qwen3_moe(facts: Facts, config: ModelConfig) -> ModelConfig:
    # transformers 5 writes the number of experts under Mixtral's name.
    count = facts.whole("num_local_experts", least=0) if "num_local_experts" in facts else None
    return sparse_layers(facts, config, facts.whole("num_experts", least=0) if count is None else count)


QWEN2 = Architecture(
    name="qwen2",
    model_type="qwen2",
    defaults=_WINDOWS,
    fixed={"qkv_bias": True},
    windows=_upper_layers,
    gguf=GgufRow(name="qwen2"),
)
QWEN3 = Architecture(
    name="qwen3",
    model_type="qwen3",
    defaults={**_WINDOWS, "head_dim": 128},
    fixed={"qk_norm": True},
    windows=_upper_layers,
    gguf=GgufRow(name="qwen3"),
)
QWEN3_MOE = Architecture(
    name="qwen3_moe",
    model_type="qwen3_moe",
    defaults={
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    },
    fixed={"qk_norm": True},
    windows=_every_layer,
    refine=_qwen3_moe,
    gguf=GgufRow(name="qwen3moe", expert_size="expert_feed_forward_length"),
)
