"""A GGUF file as a model: its configuration, and its weights under their canonical names."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.dtypes import FLOAT32, Dtype, converted, dtype_of
from pawl.gpu.models.architectures.base import GgufRow
from pawl.gpu.models.config import MOST_HEAD_DIM, MOST_LAYERS, Experts, ModelConfig, Rope, weight_shapes
from pawl.gpu.models.facts import Facts
from pawl.gpu.models.registry import by_gguf
from pawl.gpu.weights.blocks import BlockFormat, Blocks, Weight
from pawl.gpu.weights.checks import Keep, Kept, all_of_it, check_names, is_norm
from pawl.gpu.weights.experts import separated, stacked_shapes
from pawl.gpu.weights.finite import check_finite
from pawl.gpu.weights.gguf import GgufFile
from pawl.gpu.weights.report import Report, unheard

_ROPE_FACTORS = "rope_freqs.weight"
_MOST_POSITIONS = (1 << 31) - 1

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
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def config_from_gguf(file: GgufFile) -> ModelConfig:
    """The decoder that the file describes. Raises UnsupportedModel with the reason."""
    row = by_gguf(str(file.metadata.get("general.architecture", "(none)")))
    assert row.gguf is not None, "found by its GGUF name"
    name = row.gguf.name
    facts = Facts(name, file.metadata, file="the file", prefix=f"{name}.")
    num_layers, hidden = facts.whole("block_count", most=MOST_LAYERS), facts.whole("embedding_length")
    num_heads = facts.whole("attention.head_count")
    head_dim = facts.whole("attention.key_length", hidden // num_heads or None, most=MOST_HEAD_DIM)
    for key in ("attention.value_length", "rope.dimension_count"):
        if facts.whole(key, head_dim) != head_dim:
            raise facts.refuse(f"{key} {facts.whole(key)} differs from the head's {head_dim}")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise facts.refuse("the file has no token_embd.weight")
    window = facts.whole("attention.sliding_window", 0, least=0, most=_MOST_POSITIONS) or None
    experts = _experts(file, facts, row.gguf, num_layers)
    fields: dict[str, Any] = {
        "architecture": row.name,
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden,
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": facts.whole("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "intermediate_size": facts.whole("feed_forward_length", experts.size if experts else None),
        "max_position": facts.whole("context_length", most=_MOST_POSITIONS),
        "norm_epsilon": facts.number("attention.layer_norm_rms_epsilon"),
        "rope": _rope(file, facts, head_dim),
        "windows": (window,) * num_layers,
        "tied_embeddings": "output.weight" not in file.tensors,
        "query_scale": head_dim**-0.5,
        "experts": experts,
    }
    return row.gguf.refine(facts, ModelConfig(**fields | dict(row.fixed)))


def _experts(file: GgufFile, facts: Facts, row: GgufRow, num_layers: int) -> Experts | None:
    """Layers with a router have experts. llama.cpp divides the shares in every kind."""
    count = facts.whole("expert_count", 0, least=0)
    if not count:
        return None
    if row.expert_size is None:
        raise facts.refuse("experts are not supported in this architecture")
    if facts.whole("expert_shared_count", 0, least=0):
        raise facts.refuse("experts that every token uses are not supported")
    if "blk.0.ffn_gate.0.weight" in file.tensors:
        reason = "the file has a tensor for each expert, as llama.cpp wrote them before April 2024: convert it again"
        raise facts.refuse(reason)
    return Experts(
        count=count,
        chosen=facts.whole("expert_used_count"),
        size=facts.whole(row.expert_size),
        normalised=True,
        layers=tuple(f"blk.{layer}.ffn_gate_inp.weight" in file.tensors for layer in range(num_layers)),
    )


def _rope(file: GgufFile, facts: Facts, head_dim: int) -> Rope:
    base = facts.number("rope.freq_base", 10_000.0)
    kind = facts.word("rope.scaling.type", "none")
    if kind == "linear":
        return Rope(base, (facts.number("rope.scaling.factor"),) * (head_dim // 2))
    if kind != "none":
        raise facts.refuse(f"rope scaling {kind[:60]!r}; known: none, linear, and Llama 3's factors")
    if _ROPE_FACTORS in file.tensors:
        return Rope(base, tuple(float(factor) for factor in file.dequantize(_ROPE_FACTORS)))
    return Rope(base)


def _canonical_names(file: GgufFile, row: GgufRow) -> dict[str, str]:
    """Name in the file -> canonical name; a name that is not known stays as it is (and is then refused)."""
    layer_names = {**_LAYER_NAMES, **row.layer_names}
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


def _checked_names(file: GgufFile, config: ModelConfig) -> tuple[GgufRow, dict[str, str]]:
    """The architecture's row, and the canonical name of each tensor. Raises WeightMismatch when the tensor table is not
    what `config` needs."""
    row = by_gguf(str(file.metadata["general.architecture"])).gguf
    assert row is not None, "its configuration was read by this row"
    names = _canonical_names(file, row)
    expected = stacked_shapes(weight_shapes(config))
    check_names(file.path, expected, {names[t.name]: t.shape for t in file.tensors.values() if t.name in names})
    return row, names


def _in_order(values: NDArray[Any], row: GgufRow, config: ModelConfig, name: str) -> NDArray[Any]:
    """The rows of a tensor, of numbers or of blocks, in the order in which the model has them."""
    if not row.interleaved or not name.endswith(("attn_q.weight", "attn_k.weight")):
        return values
    return _unpermute(values, config.num_heads if name.endswith("attn_q.weight") else config.num_kv_heads)


def _unpermute(values: NDArray[Any], num_heads: int) -> NDArray[Any]:
    """Undo llama.cpp's interleaving of rope pairs: rows (i, i + 1) of a head go back to (i, i + head_dim / 2)."""
    rows, columns = values.shape
    pairs = values.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def load_gguf_weights(
    file: GgufFile,
    config: ModelConfig,
    dtype: Dtype,
    report: Report = unheard,
    *,
    keep: Keep = all_of_it,
) -> dict[str, NDArray[Any]]:
    """Every weight that is to `keep`, dequantised, in `dtype` (norms float32), under its canonical name.

    Raises NotFinite, or WeightMismatch when the tensor table is not what `config` needs.
    """
    row, names = _checked_names(file, config)
    weights = Kept(file.path, weight_shapes(config), keep)
    for number, (name, canonical) in enumerate(names.items()):
        report(number / len(names))
        for part, values in separated(canonical, _numbers(file, row, config, name)):
            weights.take({part: _converted(part, values, dtype)})
    return weights.complete()


def _numbers(file: GgufFile, row: GgufRow, config: ModelConfig, name: str) -> NDArray[np.float32]:
    """A tensor dequantised."""
    values = _in_order(file.dequantize(name), row, config, name)
    # An unquantised tensor is still a view of the file: "W" makes it ours.
    return np.require(values, np.float32, ["C", "W"])


def _converted(name: str, values: NDArray[np.float32], dtype: Dtype) -> NDArray[Any]:
    return converted(values, FLOAT32 if is_norm(name) else dtype_of(dtype))


def mostly_blocks(file: GgufFile) -> bool:
    """Whether at least half of the numbers of a file are in formats that the compiled kernels compute as they are."""
    sizes = {name: math.prod(tensor.shape) for name, tensor in file.tensors.items()}
    return 2 * sum(sizes[name] for name in sizes if _format(file, name) is not None) >= sum(sizes.values())


def _format(file: GgufFile, name: str) -> BlockFormat | None:
    """Of a matrix, or of those of all experts; None for whatever else there is."""
    tensor = file.tensors[name]
    is_one = len(tensor.shape) > 1 and tensor.quantization in set(BlockFormat)
    return BlockFormat(tensor.quantization) if is_one else None


def load_gguf_blocks(file: GgufFile, config: ModelConfig, dtype: Dtype, report: Report = unheard) -> dict[str, Weight]:
    """Every weight under its canonical name: matrices as the blocks that they are in the file, views of it, and what is
    in no `BlockFormat` as `load_gguf_weights` gives it. Raises as that does."""
    row, names = _checked_names(file, config)
    weights: dict[str, Weight] = {}
    for number, (name, canonical) in enumerate(names.items()):
        report(number / len(names))
        kind = _format(file, name)
        if kind is None:
            for part, values in separated(canonical, _numbers(file, row, config, name)):
                weights[part] = _converted(part, values, dtype)
        else:
            for part, data in separated(canonical, _in_order(file.blocks(name), row, config, name)):
                weights[part] = Blocks(np.ascontiguousarray(data), kind)
    check_finite(file.path, weights)
    return weights
