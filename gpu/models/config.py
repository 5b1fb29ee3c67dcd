"""What a decoder looks like: one record of numbers that drives every supported architecture.

    embed * embedding_scale
    for each layer:
        x += [post_attention_norm] o_proj( attention( rope( [q/k norm] qkv_proj( input_norm(x) ) ) ) )
        x += [post_mlp_norm] down_proj( activation(gate_proj(h)) * up_proj(h) ),  h = mlp_norm(x)
          or, in a layer of experts:  sum over the experts e chosen for the token of  share(e) * mlp_e(h)
    logits = head( final_norm(x) )

Parts in brackets exist where the record says so. Every norm is RMSNorm with a plain weight: Gemma's (1 + w) is folded
in when weights are loaded.

A token's experts are those with the largest scores, router(h); of equal scores, the lower number. Shares are the
softmax of all scores, and where `Experts.normalised` says so divided by the sum over the chosen (Mixtral, Jiang et al.
2024).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, Self, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

Activation: TypeAlias = Literal["silu", "gelu_tanh"]


MOST_LAYERS = 4096
MOST_HEAD_DIM = 4096
MOST_EXPERTS = 1 << 17
"""Experts of all layers together. The largest models have a tenth of each; lists grow with them."""


class UnsupportedModel(Exception):
    """This decoder cannot compute the model; better refused than computed wrong."""

    def __init__(self, model: str, reason: str) -> None:
        super().__init__(f"model {model}: {reason}")
        self.model = model
        self.reason = reason


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding (Su et al. 2021) in the half-split layout: dimension i turns with i + head_dim/2."""

    base: float
    factors: tuple[float, ...] = ()
    """Divides each of the head_dim / 2 inverse frequencies (linear and Llama 3 scaling); empty: 1 everywhere."""

    def inverse_frequencies(self, head_dim: int) -> NDArray[np.float32]:
        """float32 [head_dim / 2], radians per position."""
        exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
        frequencies = self.base**-exponents
        if self.factors:
            frequencies /= np.asarray(self.factors, np.float64)
        return frequencies.astype(np.float32)


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """Layers with many MLPs, of which each token uses a few."""

    count: int
    chosen: int
    """Experts of one token."""
    size: int
    """Inner width of one expert."""
    normalised: bool
    """Whether the shares of a token's experts sum to 1."""
    layers: tuple[bool, ...]
    """For each layer: whether it has experts, and not one MLP of `intermediate_size`."""


class Operation(msgspec.Struct, frozen=True):
    """What the models of one architecture compute and no other: its numbers. The file of the architecture derives from
    this class, and from the plain torch decoder to compute it; no other backend knows it until its switches say so."""

    what: ClassVar[str]
    """In words, for the message of a backend that does not know it."""

    def layer_shapes(self, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """Weights of layer `layer` that only this operation has, names without the layer's, with their shapes."""
        return {}

    def narrowed(self, columns: Callable[[int], range]) -> Self:
        """The operation of a rank that has `columns(n)` of an inner width of n."""
        return self


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Shapes and switches of one decoder. Made by `config_from_huggingface` and `config_from_gguf`."""

    architecture: str
    """Its row in `pawl.gpu.models.registry`: a name for people; nothing branches on it after loading."""
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    """Positions the model was made for."""
    norm_epsilon: float
    rope: Rope
    local_rope: Rope | None = None
    """Used by layers with a window; None: they use `rope` too."""
    windows: tuple[int | None, ...]
    """For each layer: a query sees this many keys, itself included; None: all before it."""
    activation: Activation = "silu"
    qkv_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over head_dim of every query and key head, before rope."""
    sandwich_norms: bool = False
    """Norms after attention and after the MLP, before the residual is added."""
    tied_embeddings: bool = False
    """The head is the embedding table."""
    embedding_scale: float = 1.0
    query_scale: float
    """Attention scores are query . key * query_scale."""
    experts: Experts | None = None
    """None: every layer has one MLP."""
    operation: Operation | None = None
    """What only this architecture has; None: the switches say everything."""

    def __post_init__(self) -> None:
        self._check(1 <= self.num_layers <= MOST_LAYERS, f"{self.num_layers} layers, of at most {MOST_LAYERS}")
        self._check(len(self.windows) == self.num_layers, f"{len(self.windows)} windows for {self.num_layers} layers")
        self._check(self.num_heads % self.num_kv_heads == 0, f"{self.num_heads} heads over {self.num_kv_heads}")
        self._check(self.head_dim % 2 == 0, f"odd head_dim {self.head_dim}")
        for rope in (self.rope, self.local_rope):
            if rope is not None:
                self._check_rope(rope)
        if self.experts is not None:
            self._check_experts(self.experts)

    def _check_rope(self, rope: Rope) -> None:
        expected = self.head_dim // 2
        self._check(len(rope.factors) in (0, expected), f"rope factors are not one for each of {expected}")
        with np.errstate(all="ignore"):
            angles = rope.inverse_frequencies(self.head_dim) * np.float32(self.max_position)
        finite = np.isfinite(angles).all() and np.isfinite(rope.factors).all()
        self._check(bool(finite), f"rope turns by angles that are not finite (base {rope.base:g}, and factors)")

    def _check_experts(self, experts: Experts) -> None:
        self._check(1 <= experts.chosen <= experts.count, f"{experts.chosen} of {experts.count} experts for a token")
        self._check(experts.size >= 1, f"experts of inner width {experts.size}")
        self._check(experts.count * self.num_layers <= MOST_EXPERTS, f"{experts.count} experts a layer")
        layers = len(experts.layers)
        self._check(layers == self.num_layers, f"{layers} layers with or without experts for {self.num_layers} layers")
        self._check(not self.sandwich_norms, "experts beside norms after the MLP are not supported")

    def _check(self, holds: bool, reason: str) -> None:
        if not holds:
            raise UnsupportedModel(self.architecture, reason)

    @property
    def query_size(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.num_kv_heads * self.head_dim

    def rope_of(self, layer: int) -> Rope:
        """The rope that layer `layer` uses."""
        if self.windows[layer] is not None and self.local_rope is not None:
            return self.local_rope
        return self.rope

    def experts_of(self, layer: int) -> Experts | None:
        """The experts of layer `layer`; None where it has one MLP."""
        return self.experts if self.experts is not None and self.experts.layers[layer] else None


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every weight of the model under its canonical name (that of HF Llama, Gemma 3 and Qwen3-MoE), with its shape.

    Matrices are [outputs, inputs]. `lm_head.weight` is absent when embeddings are tied. As in those models,
    `post_attention_layernorm` is the norm before the MLP, except with sandwich norms, where it is the norm after
    attention and `pre_feedforward_layernorm` is the one before the MLP.
    """
    hidden = config.hidden_size
    query, kv = config.query_size, config.kv_size
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "self_attn.q_proj.weight": (query, hidden),
        "self_attn.k_proj.weight": (kv, hidden),
        "self_attn.v_proj.weight": (kv, hidden),
        "self_attn.o_proj.weight": (hidden, query),
        "post_attention_layernorm.weight": (hidden,),
    }
    if config.qkv_bias:
        layer |= {
            "self_attn.q_proj.bias": (query,),
            "self_attn.k_proj.bias": (kv,),
            "self_attn.v_proj.bias": (kv,),
        }
    if config.qk_norm:
        layer |= {"self_attn.q_norm.weight": (config.head_dim,), "self_attn.k_norm.weight": (config.head_dim,)}
    if config.sandwich_norms:
        layer |= {
            "pre_feedforward_layernorm.weight": (hidden,),
            "post_feedforward_layernorm.weight": (hidden,),
        }
    shapes = {"model.embed_tokens.weight": (config.vocab_size, hidden), "model.norm.weight": (hidden,)}
    for index in range(config.num_layers):
        parts = layer | _mlp_shapes(config, index)
        if config.operation is not None:
            parts |= config.operation.layer_shapes(config, index)
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in parts.items()}
    if not config.tied_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def _mlp_shapes(config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
    """What comes after attention in this layer, but the norms: one MLP, or a router and many."""
    hidden = config.hidden_size

    def mlp(stem: str, inner: int) -> dict[str, tuple[int, ...]]:
        return {
            f"{stem}.gate_proj.weight": (inner, hidden),
            f"{stem}.up_proj.weight": (inner, hidden),
            f"{stem}.down_proj.weight": (hidden, inner),
        }

    experts = config.experts_of(layer)
    if experts is None:
        return mlp("mlp", config.intermediate_size)
    shapes: dict[str, tuple[int, ...]] = {"mlp.gate.weight": (experts.count, hidden)}
    for expert in range(experts.count):
        shapes |= mlp(f"mlp.experts.{expert}", experts.size)
    return shapes
