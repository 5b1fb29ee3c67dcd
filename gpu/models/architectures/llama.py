"""Llama, and what differs from it in sizes only: Mistral (windows) and Mixtral (experts)."""

from __future__ import annotations

import msgspec

from pawl.gpu.models.architectures.base import Architecture, GgufRow, all_windowed
from pawl.gpu.models.config import Experts, ModelConfig
from pawl.gpu.models.facts import Facts


def _mixtral(facts: Facts, config: ModelConfig) -> ModelConfig:
    experts = Experts(
        count=facts.whole("num_local_experts"),
        chosen=facts.whole("num_experts_per_tok"),
        size=config.intermediate_size,
        normalised=True,
        layers=(True,) * config.num_layers,
    )
    return msgspec.structs.replace(config, experts=experts)


def _llama_gguf(_: Facts, config: ModelConfig) -> ModelConfig:
    """llama.cpp knows Mixtral as `llama`."""
    return config if config.experts is None else msgspec.structs.replace(config, architecture="mixtral")


LLAMA = Architecture(
    name="llama",
    model_type="llama",
    gguf=GgufRow(name="llama", refine=_llama_gguf, interleaved=True, expert_size="feed_forward_length"),
)
MISTRAL = Architecture(
    name="mistral",
    model_type="mistral",
    defaults={"max_position_embeddings": 131_072, "sliding_window": 4096},
    windows=all_windowed,
)
MIXTRAL = Architecture(
    name="mixtral",
    model_type="mixtral",
    defaults={
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    windows=all_windowed,
    refine=_mixtral,
)
