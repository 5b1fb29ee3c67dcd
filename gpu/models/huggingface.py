"""Read a Hugging Face `config.json` into a ModelConfig, or say why this decoder cannot compute the model.

Both generations of the file are understood: `rope_theta` with `rope_scaling` (transformers 4) and `rope_parameters`
(transformers 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pawl.gpu.models.config import Activation, Experts, ModelConfig, Rope, UnsupportedModel

_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "mistral",
    "mixtral": "mixtral",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
    "gemma3_text": "gemma3",
}
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# What each model class takes for keys its file leaves out, where it is not what Llama takes.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "hidden_act": "silu", "max_position_embeddings": 2048},
    "mistral": {"max_position_embeddings": 131_072, "sliding_window": 4096},
    "mixtral": {
        "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
    },
    "qwen2": {"max_position_embeddings": 32_768, "sliding_window": 4096, "max_window_layers": 28},
    "qwen3": {"max_position_embeddings": 32_768, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
    "qwen3_moe": {
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
        "num_key_value_heads": 4,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    "gemma3_text": {
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "tie_word_embeddings": True,
    },
}
# Keys that change the computation in ways this decoder does not know; the value is what "off" looks like.
_MUST_BE_OFF: dict[str, tuple[Any, ...]] = {
    "mlp_bias": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1.0),
}


def config_from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """The decoder that `config.json` (as a dict) describes. Raises UnsupportedModel with the reason."""
    model_type = str(values.get("model_type", "(none)"))
    architecture = _ARCHITECTURES.get(model_type)
    if architecture is None:
        known = ", ".join(sorted(_ARCHITECTURES))
        raise UnsupportedModel(model_type, f"unknown architecture; known model types: {known}")
    given = {key: value for key, value in values.items() if value is not None}
    keys = {**_DEFAULTS["llama"], **_DEFAULTS[model_type], **given}
    # Absent means the class default, but an explicit null window means: no window.
    if "sliding_window" in values and values["sliding_window"] is None:
        keys.pop("sliding_window", None)
    for key, off in _MUST_BE_OFF.items():
        if keys.get(key) not in off:
            raise UnsupportedModel(model_type, f"{key} = {keys[key]!r} is not supported")
    if keys.get("attention_bias") and model_type != "qwen2":
        raise UnsupportedModel(model_type, "attention_bias is supported for qwen2 only")

    def need(key: str) -> Any:
        if key not in keys:
            raise UnsupportedModel(model_type, f"config.json does not say {key}")
        return keys[key]

    num_heads, hidden = int(need("num_attention_heads")), int(need("hidden_size"))
    head_dim = int(keys.get("head_dim", hidden // num_heads))
    gemma = architecture == "gemma3"
    windows = _windows(model_type, keys, int(need("num_hidden_layers")))
    rope, local_rope = _ropes(model_type, keys, head_dim)
    return ModelConfig(
        architecture=architecture,
        vocab_size=int(need("vocab_size")),
        hidden_size=hidden,
        num_layers=len(windows),
        num_heads=num_heads,
        num_kv_heads=int(keys.get("num_key_value_heads", num_heads)),
        head_dim=head_dim,
        intermediate_size=int(need("intermediate_size")),
        max_position=int(keys["max_position_embeddings"]),
        norm_epsilon=float(keys["rms_norm_eps"]),
        rope=rope,
        local_rope=local_rope,
        windows=windows,
        activation=_activation(model_type, keys),
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture in ("qwen3", "qwen3_moe", "gemma3"),
        sandwich_norms=gemma,
        tied_embeddings=bool(keys.get("tie_word_embeddings", False)),
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        query_scale=float(keys["query_pre_attn_scalar"]) ** -0.5 if gemma else head_dim**-0.5,
        experts=_experts(model_type, keys, len(windows)),
    )


def _experts(model_type: str, keys: Mapping[str, Any], num_layers: int) -> Experts | None:
    if model_type == "mixtral":
        return Experts(
            count=int(keys["num_local_experts"]),
            chosen=int(keys["num_experts_per_tok"]),
            size=int(keys["intermediate_size"]),
            normalised=True,
            layers=(True,) * num_layers,
        )
    if model_type != "qwen3_moe":
        return None
    # transformers 5 writes the number of experts under Mixtral's name.
    count, step = int(keys.get("num_local_experts", keys["num_experts"])), int(keys["decoder_sparse_step"])
    dense = set(keys["mlp_only_layers"])
    layers = tuple(count > 0 and i not in dense and (i + 1) % step == 0 for i in range(num_layers))
    if not any(layers):
        return None
    return Experts(
        count=count,
        chosen=int(keys["num_experts_per_tok"]),
        size=int(keys["moe_intermediate_size"]),
        normalised=bool(keys["norm_topk_prob"]),
        layers=layers,
    )


def _activation(model_type: str, keys: Mapping[str, Any]) -> Activation:
    name = str(keys.get("hidden_activation", keys["hidden_act"]))
    if name not in _ACTIVATIONS:
        raise UnsupportedModel(model_type, f"activation {name!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _windows(model_type: str, keys: Mapping[str, Any], num_layers: int) -> tuple[int | None, ...]:
    kinds = keys.get("layer_types")
    window = keys.get("sliding_window")
    if model_type == "llama" or window is None:
        return (None,) * num_layers
    if kinds is None:
        if model_type in ("mistral", "mixtral", "qwen3_moe"):
            kinds = ["sliding_attention"] * num_layers
        elif model_type == "gemma3_text":
            pattern = int(keys.get("sliding_window_pattern", 6))
            kinds = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(num_layers)]
        else:
            first = int(keys["max_window_layers"])
            kinds = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    if model_type in ("qwen2", "qwen3", "qwen3_moe") and not keys.get("use_sliding_window", False):
        return (None,) * num_layers
    unknown = set(kinds) - {"sliding_attention", "full_attention"}
    if unknown:
        raise UnsupportedModel(model_type, f"layer types {sorted(unknown)}")
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds[:num_layers])


def _ropes(model_type: str, keys: Mapping[str, Any], head_dim: int) -> tuple[Rope, Rope | None]:
    """The rope of full-attention layers, and that of windowed ones where it differs (Gemma 3)."""
    theta = float(keys["rope_theta"])
    given = keys.get("rope_parameters") or keys.get("rope_scaling") or {}
    local = Rope(float(keys["rope_local_base_freq"])) if "rope_local_base_freq" in keys else None
    if "full_attention" in given or "sliding_attention" in given:
        nested = given.get("sliding_attention") or {}
        local_theta = local.base if local else theta
        return (
            _rope(model_type, given.get("full_attention") or {}, theta, head_dim, keys),
            _rope(model_type, nested, local_theta, head_dim, keys),
        )
    return _rope(model_type, given, theta, head_dim, keys), local


def _rope(model_type: str, parameters: Mapping[str, Any], theta: float, head_dim: int, keys: Mapping[str, Any]) -> Rope:
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    base = float(parameters.get("rope_theta", theta))
    if parameters.get("partial_rotary_factor") not in (None, 1.0):
        raise UnsupportedModel(model_type, "rope over a part of each head is not supported")
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope(base, (float(parameters["factor"]),) * (head_dim // 2))
    if kind == "llama3":
        return Rope(base, _llama3_factors(base, head_dim, parameters, keys))
    raise UnsupportedModel(model_type, f"rope type {kind!r}; known: default, linear, llama3")


def _llama3_factors(
    base: float, head_dim: int, parameters: Mapping[str, Any], keys: Mapping[str, Any]
) -> tuple[float, ...]:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    factor, low, high = (float(parameters[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = float(parameters.get("original_max_position_embeddings", keys["max_position_embeddings"]))
    factors = []
    for frequency in Rope(base).inverse_frequencies(head_dim).astype(float):
        turns = original * frequency / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1.0 / ((1.0 - kept) / factor + kept))
    return tuple(factors)
