"""Read a Hugging Face `config.json` into a ModelConfig, or say why no decoder here can compute the model.

Both generations of the file are understood: `rope_theta` with `rope_scaling` (transformers 4) and `rope_parameters`
(transformers 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pawl.gpu.models.architectures.base import Architecture
from pawl.gpu.models.config import MOST_HEAD_DIM, MOST_LAYERS, Activation, ModelConfig, Rope
from pawl.gpu.models.facts import Facts
from pawl.gpu.models.registry import by_model_type

_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
# What Llama's class takes for keys its file leaves out.
_DEFAULTS: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "rope_theta": 10_000.0,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
}
# Keys that change the computation; only a row that `computes` one knows it. The values are what "off" looks like.
_MUST_BE_OFF: dict[str, tuple[Any, ...]] = {
    "mlp_bias": (None, False),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
    "use_bidirectional_attention": (None, False),
    "partial_rotary_factor": (None, 1.0),
}
_KINDS = {"sliding_attention": True, "full_attention": False}
_MOST_POSITIONS = (1 << 31) - 1


def config_from_huggingface(values: Mapping[str, Any]) -> ModelConfig:
    """The decoder that `config.json` (as a dict) describes. Raises UnsupportedModel with the reason."""
    row = by_model_type(str(values.get("model_type", "(none)")))
    given = {key: value for key, value in values.items() if value is not None}
    keys = {**_DEFAULTS, **row.defaults, **given}
    # Absent means the class default, but an explicit null window means: no window.
    if "sliding_window" in values and values["sliding_window"] is None:
        keys.pop("sliding_window", None)
    facts = Facts(row.model_type, keys)
    for key, off in _MUST_BE_OFF.items():
        if keys.get(key) not in off and key not in row.computes:
            raise facts.refuse(f"{key} is set, which is not supported")
    if facts.flag("attention_bias") and not row.fixed.get("qkv_bias"):
        raise facts.refuse("attention_bias is supported for qwen2 only")
    num_heads, hidden = facts.whole("num_attention_heads"), facts.whole("hidden_size")
    head_dim = facts.whole("head_dim", hidden // num_heads or None, most=MOST_HEAD_DIM)
    rope, local_rope = _ropes(facts, head_dim)
    fields: dict[str, Any] = {
        "architecture": row.name,
        "vocab_size": facts.whole("vocab_size"),
        "hidden_size": hidden,
        "num_layers": facts.whole("num_hidden_layers", most=MOST_LAYERS),
        "num_heads": num_heads,
        "num_kv_heads": facts.whole("num_key_value_heads", num_heads),
        "head_dim": head_dim,
        "intermediate_size": facts.whole("intermediate_size"),
        "max_position": facts.whole("max_position_embeddings", most=_MOST_POSITIONS),
        "norm_epsilon": facts.number("rms_norm_eps"),
        "rope": rope,
        "local_rope": local_rope,
        "activation": _activation(facts),
        "tied_embeddings": facts.flag("tie_word_embeddings"),
        "query_scale": head_dim**-0.5,
    }
    windows = _windows(row, facts, fields["num_layers"])
    return row.refine(facts, ModelConfig(**fields | dict(row.fixed), windows=windows))


def _activation(facts: Facts) -> Activation:
    name = facts.word("hidden_activation", facts.word("hidden_act"))
    if name not in _ACTIVATIONS:
        raise facts.refuse(f"activation {name[:60]!r}; known: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _windows(row: Architecture, facts: Facts, num_layers: int) -> tuple[int | None, ...]:
    windowed = row.windows(facts, num_layers) if "sliding_window" in facts else None
    if windowed is None:
        return (None,) * num_layers
    kinds = facts.sequence("layer_types")
    if kinds is not None:
        unknown = [kind for kind in kinds if not isinstance(kind, str) or kind not in _KINDS]
        if unknown:
            raise facts.refuse(f"layer types other than {', '.join(_KINDS)}: {str(unknown[0])[:60]!r}")
        if len(kinds) < num_layers:
            raise facts.refuse(f"{len(kinds)} layer types for {num_layers} layers")
        windowed = [_KINDS[kind] for kind in kinds[:num_layers]]
    if not any(windowed):
        return (None,) * num_layers
    window = facts.whole("sliding_window", most=_MOST_POSITIONS)
    return tuple(window if own else None for own in windowed)


def _ropes(facts: Facts, head_dim: int) -> tuple[Rope, Rope | None]:
    """The rope of full-attention layers, and that of windowed ones where it differs (Gemma 3)."""
    theta = facts.number("rope_theta")
    given = facts.within("rope_parameters", "rope_scaling")
    local = Rope(facts.number("rope_local_base_freq")) if "rope_local_base_freq" in facts else None
    if "full_attention" in given or "sliding_attention" in given:
        return (
            _rope(facts, given.within("full_attention"), theta, head_dim),
            _rope(facts, given.within("sliding_attention"), local.base if local else theta, head_dim),
        )
    return _rope(facts, given, theta, head_dim), local


def _rope(facts: Facts, parameters: Facts, theta: float, head_dim: int) -> Rope:
    kind = parameters.word("rope_type", parameters.word("type", "default"))
    base = parameters.number("rope_theta", theta)
    if parameters.raw("partial_rotary_factor", 1.0) != 1.0:
        raise facts.refuse("rope over a part of each head is not supported")
    if kind == "default":
        return Rope(base)
    if kind == "linear":
        return Rope(base, (parameters.number("factor"),) * (head_dim // 2))
    if kind == "llama3":
        return Rope(base, _llama3_factors(facts, parameters, base, head_dim))
    raise facts.refuse(f"rope type {kind[:60]!r}; known: default, linear, llama3")


def _llama3_factors(facts: Facts, parameters: Facts, base: float, head_dim: int) -> tuple[float, ...]:
    """Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    factor, low, high = (parameters.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    if high <= low:
        raise facts.refuse(f"high_freq_factor {high:g} is not above low_freq_factor {low:g}")
    original = parameters.number("original_max_position_embeddings", facts.number("max_position_embeddings"))
    factors = []
    for frequency in Rope(base).inverse_frequencies(head_dim).astype(float):
        turns = original * frequency / (2 * math.pi)
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1.0 / ((1.0 - kept) / factor + kept))
    return tuple(factors)
