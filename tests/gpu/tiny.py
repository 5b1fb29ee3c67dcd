"""Tiny random models of every architecture, made by transformers: the oracle of the decoder's tests."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 97

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_QWEN3_MOE: dict[str, Any] = {"head_dim": 16, "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 3}


_WIDE: dict[str, Any] = {**_COMMON, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
"""Rows are whole blocks of every quantised format of 32, and heads fill panels."""


def _configs() -> dict[str, Any]:
    return {
        "llama-wide": transformers.LlamaConfig(**_WIDE),
        "qwen2-wide": transformers.Qwen2Config(**_WIDE),
        "qwen3-moe-wide": transformers.Qwen3MoeConfig(
            **_WIDE, **{**_QWEN3_MOE, "moe_intermediate_size": 32}, norm_topk_prob=True
        ),
        "gemma3-wide": transformers.Gemma3TextConfig(
            **{**_WIDE, "tie_word_embeddings": True}, head_dim=16, sliding_window=6, query_pre_attn_scalar=24
        ),
        "llama": transformers.LlamaConfig(**_COMMON),
        "llama-tied": transformers.LlamaConfig(**{**_COMMON, "tie_word_embeddings": True}),
        "llama-one-kv-head": transformers.LlamaConfig(**{**_COMMON, "num_key_value_heads": 1}),
        "llama-no-sharing": transformers.LlamaConfig(**{**_COMMON, "num_key_value_heads": 4}),
        "llama3-rope": transformers.LlamaConfig(**_COMMON, rope_parameters=dict(_LLAMA3_ROPE)),
        "linear-rope": transformers.LlamaConfig(
            **_COMMON, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
        ),
        "mistral": transformers.MistralConfig(**_COMMON, sliding_window=None),
        "mistral-window": transformers.MistralConfig(**_COMMON, sliding_window=7),
        "qwen2": transformers.Qwen2Config(**_COMMON),
        "qwen2-window": transformers.Qwen2Config(
            **_COMMON, use_sliding_window=True, sliding_window=5, max_window_layers=1
        ),
        "qwen3": transformers.Qwen3Config(**_COMMON, head_dim=16),
        "mixtral": transformers.MixtralConfig(
            **_COMMON,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        ),
        "qwen3-moe": transformers.Qwen3MoeConfig(**_COMMON, **_QWEN3_MOE, norm_topk_prob=True),
        "qwen3-moe-mixed": transformers.Qwen3MoeConfig(
            **{**_COMMON, "num_hidden_layers": 4}, **_QWEN3_MOE, decoder_sparse_step=2, mlp_only_layers=[3]
        ),
        "gemma3": transformers.Gemma3TextConfig(
            **{**_COMMON, "num_hidden_layers": 7, "tie_word_embeddings": True},
            head_dim=16,
            sliding_window=6,
            query_pre_attn_scalar=24,
        ),
        "phi3": transformers.Phi3Config(**_COMMON, pad_token_id=0),
        "granite": transformers.GraniteConfig(
            **_COMMON,
            embedding_multiplier=6.0,
            attention_multiplier=0.25,
            residual_multiplier=0.5,
            logits_scaling=4.0,
        ),
        "qwen2-moe": transformers.Qwen2MoeConfig(
            **{**_COMMON, "num_hidden_layers": 4},
            moe_intermediate_size=24,
            shared_expert_intermediate_size=40,
            num_experts=8,
            num_experts_per_tok=3,
            mlp_only_layers=[1],
        ),
    }


TINY_MODELS = (
    "llama",
    "llama-tied",
    "llama-one-kv-head",
    "llama-no-sharing",
    "llama3-rope",
    "linear-rope",
    "mistral",
    "mistral-window",
    "qwen2",
    "qwen2-window",
    "qwen3",
    "mixtral",
    "qwen3-moe",
    "qwen3-moe-mixed",
    "gemma3",
    "phi3",
    "granite",
    "qwen2-moe",
)
OF_THEIR_OWN = ("granite", "qwen2-moe")
"""Models with an operation that plain torch alone computes."""


@cache
def tiny_model(name: str) -> Any:
    """A transformers model in float32 with every parameter random, biases and norms too."""
    generator = torch.Generator().manual_seed(sum(name.encode()))
    model = transformers.AutoModelForCausalLM.from_config(_configs()[name], dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() >= 2:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            elif "norm" in parameter_name:
                parameter.add_(noise * 0.2)
            else:
                parameter.copy_(noise * 0.3)
    return model


def save_tiny(name: str, folder: Path, **options: Any) -> Path:
    """Write the model as a Hugging Face folder (config.json and safetensors)."""
    tiny_model(name).save_pretrained(folder, **options)
    return folder


def reference_logits(name: str, tokens: list[int]) -> torch.Tensor:
    """Logits of every position, float32 [t, vocab], computed by transformers in one pass."""
    with torch.inference_mode():
        logits: torch.Tensor = tiny_model(name)(torch.tensor([tokens])).logits[0].float()
    return logits
