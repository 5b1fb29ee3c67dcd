"""A model's weights on their device, as both decoders use them: matrices that read the same input are stacked.

q, k, v      one product for the three projections
gate, up     one product for both halves of an MLP
experts      one tensor for the same matrix of every expert
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from pawl.gpu.adapters.rows import StepAdapters
from pawl.gpu.models.config import ModelConfig
from pawl.lifecycle.step import Int32s


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer, packed. Matrices [outputs, inputs] in the model's dtype, norms float32."""

    input_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: Tensor
    attention_norm: Tensor | None
    """After attention, before the residual is added."""
    mlp_norm: Tensor
    gate_up: Tensor
    """[2 * inner, hidden]; with experts [held, 2 * inner, hidden]."""
    down: Tensor
    """[hidden, inner]; with experts [held, hidden, inner]."""
    after_mlp_norm: Tensor | None
    router: Tensor | None = None
    """[experts, hidden]; None: one MLP."""
    held: tuple[int, ...] = ()
    """The experts that are here, rising: all of them, unless ranks share them out."""
    own: Mapping[str, Tensor] = field(default_factory=dict)
    """What the architecture's operation has, by the names of `Operation.layer_shapes`."""
    adapters: StepAdapters | None = None
    """What a step's adapters add to the layer's products; None: nothing."""

    def of_rows(self, rows: Int32s) -> LayerWeights:
        """The layer for these rows of a step alone, rising int32 [m]."""
        return self if self.adapters is None else replace(self, adapters=self.adapters.of_rows(rows))


def _layer(config: ModelConfig, weights: MutableMapping[str, Tensor], layer: int, device: torch.device) -> LayerWeights:
    def take(*names: str) -> Tensor:
        parts = [weights.pop(f"model.layers.{layer}.{name}") for name in names]
        return _own(parts[0], device) if len(parts) == 1 else torch.cat([part.to(device) for part in parts])

    def norm(exists: bool, name: str) -> Tensor | None:
        return take(f"{name}.weight") if exists else None

    def experts(*names: str) -> Tensor:
        stems = [f"mlp.experts.{index}" for index in held]
        return torch.stack([take(*(f"{stem}.{name}.weight" for name in names)) for stem in stems])

    chosen = config.experts_of(layer)
    many = chosen is not None
    count = chosen.count if chosen is not None else 0
    held = tuple(e for e in range(count) if f"model.layers.{layer}.mlp.experts.{e}.down_proj.weight" in weights)
    projections = [f"self_attn.{part}_proj" for part in "qkv"]
    sandwich = config.sandwich_norms
    own = {} if config.operation is None else config.operation.layer_shapes(config, layer)
    return LayerWeights(
        input_norm=take("input_layernorm.weight"),
        qkv=take(*(f"{name}.weight" for name in projections)),
        qkv_bias=take(*(f"{name}.bias" for name in projections)) if config.qkv_bias else None,
        query_norm=norm(config.qk_norm, "self_attn.q_norm"),
        key_norm=norm(config.qk_norm, "self_attn.k_norm"),
        output=take("self_attn.o_proj.weight"),
        attention_norm=norm(sandwich, "post_attention_layernorm"),
        mlp_norm=take("pre_feedforward_layernorm.weight" if sandwich else "post_attention_layernorm.weight"),
        gate_up=experts("gate_proj", "up_proj") if many else take("mlp.gate_proj.weight", "mlp.up_proj.weight"),
        down=experts("down_proj") if many else take("mlp.down_proj.weight"),
        after_mlp_norm=norm(sandwich, "post_feedforward_layernorm"),
        router=take("mlp.gate.weight") if many else None,
        held=held,
        own={name: take(name) for name in own},
    )


@dataclass(frozen=True, slots=True)
class PackedWeights:
    """All weights of a decoder, packed."""

    layers: tuple[LayerWeights, ...]
    embedding: Tensor
    """[vocab, hidden]; empty, as the next two, in a stage of a pipeline that has no use for it."""
    final_norm: Tensor
    """float32 [hidden]"""
    head: Tensor
    """[vocab, hidden]; the embedding itself where the model ties them."""

    def layers_with(self, adapters: StepAdapters | None) -> Iterator[LayerWeights]:
        """The layers, with the adapters of a step."""
        for index, layer in enumerate(self.layers):
            yield layer if adapters is None else replace(layer, adapters=adapters.at(index))


def with_experts(index: int, layer: LayerWeights, held: tuple[int, ...], staged: Mapping[str, Tensor]) -> LayerWeights:
    """Layer `index` with these experts in place of its own: those that it has, others of what is staged, by canonical
    names. Raises ValueError where one is in neither."""
    if held == layer.held:
        return layer

    def stacked(there: Tensor, *names: str) -> Tensor:
        def one(expert: int) -> Tensor:
            if expert in layer.held:
                return there[layer.held.index(expert)]
            stem = f"model.layers.{index}.mlp.experts.{expert}"
            parts = [staged.get(f"{stem}.{name}.weight") for name in names]
            if any(part is None for part in parts):
                raise ValueError(f"expert {expert} of layer {index} is not staged")
            return torch.cat([part for part in parts if part is not None])

        return torch.stack([one(expert) for expert in held])

    gate_up, down = stacked(layer.gate_up, "gate_proj", "up_proj"), stacked(layer.down, "down_proj")
    return replace(layer, gate_up=gate_up, down=down, held=held)


def _own(weight: Tensor, device: torch.device) -> Tensor:
    """A copy: what is loaded may be a view of a file, which somebody may write anew while the model serves."""
    return weight.to(device, copy=True)


def pack(config: ModelConfig, weights: MutableMapping[str, Tensor], device: torch.device) -> PackedWeights:
    """Move `weights` to `device`; entries are popped as they go, so that one copy of each exists at a time."""

    def take(name: str) -> Tensor:
        return _own(weights.pop(name), device) if name in weights else layers[0].output.new_empty(0)

    layers = tuple(_layer(config, weights, index, device) for index in range(config.num_layers))
    embedding, final_norm = take("model.embed_tokens.weight"), take("model.norm.weight")
    head = embedding if config.tied_embeddings else take("lm_head.weight")
    return PackedWeights(layers, embedding, final_norm, head)


def unpacked(config: ModelConfig, packed: PackedWeights) -> dict[str, Tensor]:
    """The inverse of `pack`: every weight under its canonical name, as a view of what computes."""
    named = {"model.embed_tokens.weight": packed.embedding, "model.norm.weight": packed.final_norm}
    for index, layer in enumerate(packed.layers):
        named |= {f"model.layers.{index}.{name}": weight for name, weight in _parts(config, layer)}
    if not config.tied_embeddings:
        named["lm_head.weight"] = packed.head
    return {name: weight for name, weight in named.items() if len(weight)}


def _parts(config: ModelConfig, layer: LayerWeights) -> Iterator[tuple[str, Tensor]]:
    sandwich, sizes = config.sandwich_norms, [config.query_size, config.kv_size, config.kv_size]
    for kind, stacked in (("weight", layer.qkv), ("bias", layer.qkv_bias)):
        if stacked is not None:
            parts = torch.split(stacked, sizes)
            yield from zip((f"self_attn.{part}_proj.{kind}" for part in "qkv"), parts, strict=True)
    norms = {
        "input_layernorm": layer.input_norm,
        "self_attn.q_norm": layer.query_norm,
        "self_attn.k_norm": layer.key_norm,
        "pre_feedforward_layernorm" if sandwich else "post_attention_layernorm": layer.mlp_norm,
        "post_feedforward_layernorm": layer.after_mlp_norm,
    }
    if sandwich:
        norms["post_attention_layernorm"] = layer.attention_norm
    yield from ((f"{name}.weight", norm) for name, norm in norms.items() if norm is not None)
    yield "self_attn.o_proj.weight", layer.output
    many = layer.router is not None
    if layer.router is not None:
        yield "mlp.gate.weight", layer.router
    pairs = zip(layer.gate_up, layer.down, strict=True) if many else [(layer.gate_up, layer.down)]
    for expert, (gate_up, down) in zip(layer.held or (0,), pairs, strict=True):
        stem = f"mlp.experts.{expert}" if many else "mlp"
        gate, up = gate_up.chunk(2)
        yield from (
            (f"{stem}.gate_proj.weight", gate),
            (f"{stem}.up_proj.weight", up),
            (f"{stem}.down_proj.weight", down),
        )
    yield from layer.own.items()
