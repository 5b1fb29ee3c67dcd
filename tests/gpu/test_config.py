"""Configurations as they are published (the keys of transformers 4) become the right decoder."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pawl.gpu.models.config import ModelConfig, Rope, UnsupportedModel, weight_shapes
from pawl.gpu.models.huggingface import config_from_huggingface

LLAMA_3_2_1B: dict[str, Any] = {
    "model_type": "llama",
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "vocab_size": 128256,
}
GEMMA_3_270M: dict[str, Any] = {
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 640,
    "intermediate_size": 2048,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "sliding_window": 512,
    "vocab_size": 262144,
}
MISTRAL_7B_V01: dict[str, Any] = {
    "model_type": "mistral",
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN_2_5_05B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 24,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
QWEN_3_06B: dict[str, Any] = {
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def num_parameters(config: ModelConfig) -> int:
    return sum(int(np.prod(shape)) for shape in weight_shapes(config).values())


@pytest.mark.parametrize(
    ("values", "parameters"),
    [
        (LLAMA_3_2_1B, 1_235_814_400),
        (GEMMA_3_270M, 268_098_176),
        (MISTRAL_7B_V01, 7_241_732_096),
        (QWEN_2_5_05B, 494_032_768),
        (QWEN_3_06B, 596_049_920),
    ],
    ids=["llama", "gemma3", "mistral", "qwen2", "qwen3"],
)
def test_published_models_have_their_published_number_of_parameters(values: dict[str, Any], parameters: int) -> None:
    assert num_parameters(config_from_huggingface(values)) == parameters


def test_llama_3_scaling_keeps_short_waves_and_stretches_long_ones() -> None:
    rope = config_from_huggingface(LLAMA_3_2_1B).rope
    wavelengths = 2 * np.pi / Rope(rope.base).inverse_frequencies(64).astype(float)
    factors = np.array(rope.factors)
    assert factors[wavelengths < 8192 / 4] == pytest.approx(1.0)
    assert factors[wavelengths > 8192] == pytest.approx(32.0)
    between = factors[(wavelengths >= 8192 / 4) & (wavelengths <= 8192)]
    assert len(between) > 0
    assert ((between > 1.0) & (between < 32.0)).all()


def test_gemma_3_alternates_windows_and_ropes() -> None:
    config = config_from_huggingface(GEMMA_3_270M)
    assert config.windows == (512, 512, 512, 512, 512, None) * 3
    assert (config.rope_of(0), config.rope_of(5)) == (Rope(10_000.0), Rope(1_000_000.0))
    assert (config.embedding_scale, config.query_scale) == (pytest.approx(640**0.5), pytest.approx(1 / 16))
    assert (config.activation, config.sandwich_norms, config.qk_norm) == ("gelu_tanh", True, True)


def test_gemma_3_linear_scaling_is_of_the_full_layers_only() -> None:
    scaled = {**GEMMA_3_270M, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    config = config_from_huggingface(scaled)
    assert config.rope == Rope(1_000_000.0, (8.0,) * 128)
    assert config.local_rope == Rope(10_000.0)


def test_windows_follow_each_familys_own_switch() -> None:
    assert config_from_huggingface(MISTRAL_7B_V01).windows == (4096,) * 32
    assert config_from_huggingface({**MISTRAL_7B_V01, "sliding_window": None}).windows == (None,) * 32
    assert config_from_huggingface(QWEN_2_5_05B).windows == (None,) * 24
    half = {**QWEN_2_5_05B, "use_sliding_window": True, "sliding_window": 64, "max_window_layers": 20}
    assert config_from_huggingface(half).windows == (None,) * 20 + (64,) * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"attn_logit_softcapping": 50.0},
        {"final_logit_softcapping": 30.0},
        {"use_bidirectional_attention": True},
        {"layer_types": ["chunked_attention"] * 18},
        {"num_key_value_heads": 3},
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0, "partial_rotary_factor": 0.5}},
    ],
)
def test_what_the_decoder_does_not_know_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModel):
        config_from_huggingface({**GEMMA_3_270M, **changes})


def test_a_rope_with_the_wrong_number_of_factors_is_refused() -> None:
    config = config_from_huggingface(QWEN_3_06B)
    with pytest.raises(UnsupportedModel, match="factors"):
        config.__replace__(rope=Rope(1e6, (2.0,) * 63))
