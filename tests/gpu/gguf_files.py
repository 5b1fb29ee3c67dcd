"""Tiny models as GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import gguf.quants
import numpy as np

from pawl.gpu.weights.blocks import BlockFormat
from tests.gpu.tiny import tiny_model

_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_EXPERT_NAMES = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
_LLAMA_NAMES = {**_NAMES, **_EXPERT_NAMES, "post_attention_layernorm": "ffn_norm"}
_GEMMA_NAMES = {
    **_NAMES,
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def _interleaved(values: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """What the llama.cpp converter does to the q and k rows of Llama models."""
    rows, columns = values.shape
    return values.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _tensors(model: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of each weight; gates and ups of experts apart, as the format has them."""
    for name, tensor in model.state_dict().items():
        stem, _, part = name.rpartition(".")
        if part == "gate_up_proj":
            gate, up = tensor.chunk(2, 1)
            yield f"{stem}.gate_proj.weight", gate
            yield f"{stem}.up_proj.weight", up
        else:
            yield (name if part in ("weight", "bias") else f"{name}.weight"), tensor


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    else:
        writer.add_string(key, value)


def _add_matrix(writer: gguf.GGUFWriter, name: str, values: np.ndarray[Any, Any], kind: BlockFormat | None) -> None:
    """A tensor, in blocks of this format where it is a matrix whose rows are whole blocks."""
    if kind is None or values.ndim < 2 or values.shape[-1] % kind.inputs or "ffn_gate_inp" in name:
        writer.add_tensor(name, np.ascontiguousarray(values))
        return
    number = gguf.GGMLQuantizationType(kind)
    writer.add_tensor(name, gguf.quants.quantize(values.astype(np.float32), number), raw_dtype=number)


def write_model(
    name: str,
    architecture: str,
    path: Path,
    metadata: Mapping[str, Any] = MappingProxyType({}),
    formats: Sequence[BlockFormat] = (),
    **extra: float | str,
) -> Path:
    """A tiny transformers model as llama.cpp's converter would write it; `metadata` are whole keys, of a vocabulary.
    Matrices are in `formats`, in turn."""
    model = tiny_model(name)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if hasattr(config, "num_experts_per_tok"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    if architecture == "granite":
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(1e6)
    for key, value in extra.items():
        full = f"{architecture}.{key.replace('__', '.')}"
        writer.add_string(full, value) if isinstance(value, str) else writer.add_float32(full, value)
    for key, value in metadata.items():
        _add(writer, key, value)
    kinds = cycle(formats or (None,))
    layer_names = _GEMMA_NAMES if architecture == "gemma3" else _LLAMA_NAMES
    for full_name, tensor in _tensors(model):
        values = tensor.float().numpy()
        stem, _, suffix = full_name.rpartition(".")
        if architecture == "gemma3" and "norm" in stem:
            values = values + 1.0
        if stem == "lm_head":
            if config.tie_word_embeddings:
                continue
            target = "output"
        elif stem.startswith("model.layers."):
            _, _, index, part = stem.split(".", 3)
            target = f"blk.{index}.{layer_names[part]}"
            if architecture in ("llama", "granite") and part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
                values = _interleaved(values, heads)
        else:
            target = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}[stem]
        _add_matrix(writer, f"{target}.{suffix}", values, next(kinds))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
