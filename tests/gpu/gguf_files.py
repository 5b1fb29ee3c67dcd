"""Tiny models as GGUF files, written as llama.cpp's converter writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

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
_LLAMA_NAMES = {**_NAMES, "post_attention_layernorm": "ffn_norm"}
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


def write_model(name: str, architecture: str, path: Path, **extra: float | str) -> Path:
    """A tiny transformers model as llama.cpp's converter would write it."""
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
    if architecture == "gemma3":
        writer.add_sliding_window(config.sliding_window)
        writer.add_rope_freq_base(1e6)
    for key, value in extra.items():
        full = f"{architecture}.{key.replace('__', '.')}"
        writer.add_string(full, value) if isinstance(value, str) else writer.add_float32(full, value)
    layer_names = _GEMMA_NAMES if architecture == "gemma3" else _LLAMA_NAMES
    for full_name, tensor in model.state_dict().items():
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
            if architecture == "llama" and part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if part.endswith("q_proj") else config.num_key_value_heads
                values = _interleaved(values, heads)
        else:
            target = {"model.embed_tokens": "token_embd", "model.norm": "output_norm"}[stem]
        writer.add_tensor(f"{target}.{suffix}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
