"""A GGUF file as a model: its configuration, and its weights under their canonical names."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pawl.gpu.models.config import Experts, ModelConfig, Rope, UnsupportedModel, weight_shapes
from pawl.gpu.weights.checks import check_names, is_norm
from pawl.gpu.weights.experts import separated, stacked_shapes
from pawl.gpu.weights.gguf import GgufFile

_ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3moe", "gemma3")
_ROPE_FACTORS = "rope_freqs.weight"
_ROUTER = "mlp.gate"
# Facts of Gemma 3 that its GGUF files leave out.
_GEMMA_LOCAL_BASE = 10_000.0
_GEMMA_PATTERN = 6
_GEMMA_27B_LAYERS = 62

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": _ROUTER,
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_SANDWICH_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def config_from_gguf(file: GgufFile) -> ModelConfig:
    """The decoder that the file describes. Raises UnsupportedModel with the reason."""
    metadata = file.metadata
    architecture = str(metadata.get("general.architecture", "(none)"))
    if architecture not in _ARCHITECTURES:
        reason = f"unknown architecture; known GGUF architectures: {', '.join(_ARCHITECTURES)}"
        raise UnsupportedModel(architecture, reason)

    def value(key: str, default: Any = None) -> Any:
        found = metadata.get(f"{architecture}.{key}", default)
        if found is None:
            raise UnsupportedModel(architecture, f"the file does not say {architecture}.{key}")
        if isinstance(found, np.ndarray):
            raise UnsupportedModel(architecture, f"{architecture}.{key} differs from layer to layer")
        return found

    num_heads, hidden, num_layers = (
        int(value(f"{key}")) for key in ("attention.head_count", "embedding_length", "block_count")
    )
    head_dim = int(value("attention.key_length", hidden // num_heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if int(value(key, head_dim)) != head_dim:
            raise UnsupportedModel(architecture, f"{key} {value(key)} differs from the head's {head_dim}")
    gemma = architecture == "gemma3"
    query_scale = (hidden / num_heads if gemma and num_layers == _GEMMA_27B_LAYERS else head_dim) ** -0.5
    experts = _experts(file, architecture, num_layers, value)
    return ModelConfig(
        architecture={"qwen3moe": "qwen3_moe", "llama": "mixtral" if experts else "llama"}.get(
            architecture, architecture
        ),
        vocab_size=file.tensors["token_embd.weight"].shape[0],
        hidden_size=hidden,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(value("attention.head_count_kv", num_heads)),
        head_dim=head_dim,
        intermediate_size=int(value("feed_forward_length", experts.size if experts else None)),
        max_position=int(value("context_length")),
        norm_epsilon=float(value("attention.layer_norm_rms_epsilon")),
        rope=_rope(file, architecture, head_dim),
        local_rope=Rope(_GEMMA_LOCAL_BASE) if gemma else None,
        windows=_windows(num_layers, int(value("attention.sliding_window", 0)), gemma),
        activation="gelu_tanh" if gemma else "silu",
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture in ("qwen3", "qwen3moe", "gemma3"),
        sandwich_norms=gemma,
        tied_embeddings="output.weight" not in file.tensors,
        embedding_scale=math.sqrt(hidden) if gemma else 1.0,
        query_scale=query_scale,
        experts=experts,
    )


def _experts(file: GgufFile, architecture: str, num_layers: int, value: Callable[..., Any]) -> Experts | None:
    """Layers with a router have experts. llama.cpp knows Mixtral as `llama`, and divides the shares in both kinds."""
    count = int(value("expert_count", 0))
    if not count:
        return None
    if architecture not in ("llama", "qwen3moe"):
        raise UnsupportedModel(architecture, "experts are supported in llama (Mixtral) and qwen3moe only")
    if int(value("expert_shared_count", 0)):
        raise UnsupportedModel(architecture, "experts that every token uses are not supported")
    layers = tuple(f"blk.{layer}.ffn_gate_inp.weight" in file.tensors for layer in range(num_layers))
    if "blk.0.ffn_gate.0.weight" in file.tensors:
        reason = "the file has a tensor for each expert, as llama.cpp wrote them before April 2024: convert it again"
        raise UnsupportedModel(architecture, reason)
    return Experts(
        count=count,
        chosen=int(value("expert_used_count")),
        size=int(value("expert_feed_forward_length" if architecture == "qwen3moe" else "feed_forward_length")),
        normalised=True,
        layers=layers,
    )


def _windows(num_layers: int, window: int, gemma: bool) -> tuple[int | None, ...]:
    if not window:
        return (None,) * num_layers
    return tuple(None if gemma and (layer + 1) % _GEMMA_PATTERN == 0 else window for layer in range(num_layers))


def _rope(file: GgufFile, architecture: str, head_dim: int) -> Rope:
    base = float(file.metadata.get(f"{architecture}.rope.freq_base", 10_000.0))
    kind = str(file.metadata.get(f"{architecture}.rope.scaling.type", "none"))
    if kind == "linear":
        factor = float(file.metadata[f"{architecture}.rope.scaling.factor"])
        return Rope(base, (factor,) * (head_dim // 2))
    if kind != "none":
        raise UnsupportedModel(architecture, f"rope scaling {kind!r}; known: none, linear, and Llama 3's factors")
    if _ROPE_FACTORS in file.tensors:
        return Rope(base, tuple(float(factor) for factor in file.dequantize(_ROPE_FACTORS)))
    return Rope(base)


def _canonical_names(file: GgufFile, config: ModelConfig) -> dict[str, str]:
    """Name in the file -> canonical name; a name that is not known stays as it is (and is then refused)."""
    layer_names = {**_LAYER_NAMES, **(_SANDWICH_NAMES if config.sandwich_norms else {})}
    names = {}
    for name in file.tensors:
        stem, _, suffix = name.rpartition(".")
        if stem in _TOP_NAMES:
            names[name] = f"{_TOP_NAMES[stem]}.{suffix}"
        elif stem.startswith("blk."):
            _, index, part = stem.split(".", 2)
            names[name] = f"model.layers.{index}.{layer_names.get(part, part)}.{suffix}"
        elif name != _ROPE_FACTORS:
            names[name] = name
    return names


def _unpermute(values: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Undo llama.cpp's interleaving of rope pairs: rows (i, i + 1) of a head go back to (i, i + head_dim / 2)."""
    rows, columns = values.shape
    pairs = values.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def load_gguf_weights(file: GgufFile, config: ModelConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every weight dequantised, in `dtype` (norms float32), under its canonical name.

    Raises WeightMismatch when the tensor table is not what `config` needs.
    """
    names = _canonical_names(file, config)
    expected = stacked_shapes(weight_shapes(config))
    check_names(file.path, expected, {names[t.name]: t.shape for t in file.tensors.values() if t.name in names})
    interleaved = file.metadata["general.architecture"] == "llama"
    weights = {}
    for name, canonical in names.items():
        values = file.dequantize(name)
        if interleaved and name.endswith(("attn_q.weight", "attn_k.weight")):
            values = _unpermute(values, config.num_heads if name.endswith("attn_q.weight") else config.num_kv_heads)
        # An unquantised tensor is still a view of the file: "W" makes it ours.
        whole = torch.from_numpy(np.require(values, np.float32, ["C", "W"]))
        for part, tensor in separated(canonical, whole):
            weights[part] = tensor.to(torch.float32 if is_norm(part) else dtype)
    return weights
