"""What an adapter (LoRA, Hu et al. 2021) adds to a model: to some of its products, a product of low rank.

    rows W^T  +  (rows shrink^T) expand^T

A decoder has four products in a layer, made of one matrix or of several that read the same rows. Their adapters are put
together likewise: those of the parts stand below each other in `shrink`, and on the diagonal of `expand`.

    shrink [rank, inputs]         expand [outputs, rank]

      q: A                          q: B  0  0
      k: A                          k: 0  B  0
      v: A                          v: 0  0  B
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

from pawl.gpu.models.config import ModelConfig, weight_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Product: TypeAlias = Literal["qkv", "output", "gate_up", "down"]
PRODUCTS: Mapping[Product, tuple[str, ...]] = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "output": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The parts of each product, in the order in which `pawl.gpu.models.packing` stacks them."""


class LowRank(NamedTuple):
    """What is added to one product."""

    shrink: Tensor
    """[rank, inputs]"""
    expand: Tensor
    """[outputs, rank], with the adapter's scale in it."""


class PackedAdapter(Protocol):
    """An adapter as a backend computes with it (see `Backend.pack_adapter`)."""

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter, of all layers."""

    fingerprint: str
    """Of what it computes: equal for equal ones, wherever they were read."""
    layers: tuple[Mapping[Product, LowRank], ...]
    """For each layer, the products that it changes."""

    def to(self, dtype: torch.dtype, device: torch.device) -> Adapter:
        """Its copy in this dtype, on this device."""
        layers = tuple(
            {name: LowRank(*(part.to(device, dtype).contiguous() for part in pair)) for name, pair in layer.items()}
            for layer in self.layers
        )
        return Adapter(self.fingerprint, layers)

    @property
    def num_bytes(self) -> int:
        """See `PackedAdapter.num_bytes`."""
        return sum(part.nbytes for layer in self.layers for pair in layer.values() for part in pair)


def adaptable(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """The matrices that an adapter may change, with their shapes [outputs, inputs]; those of experts are none."""
    parts = [part for product in PRODUCTS.values() for part in product]
    shapes = weight_shapes(config)
    names = [f"model.layers.{layer}.{part}" for layer in range(config.num_layers) for part in parts]
    return {name: (shape[0], shape[1]) for name in names if (shape := shapes.get(f"{name}.weight")) is not None}


def fused(config: ModelConfig, fingerprint: str, matrices: Mapping[str, LowRank]) -> Adapter:
    """The adapter that changes these of `adaptable`, each with what is added to it, float32."""
    shapes = adaptable(config)
    layers = []
    for layer in range(config.num_layers):
        products: dict[Product, LowRank] = {}
        for product, parts in PRODUCTS.items():
            names = [f"model.layers.{layer}.{part}" for part in parts]
            if any(name in matrices for name in names):
                products[product] = _stacked([(shapes[name], matrices.get(name)) for name in names])
        layers.append(products)
    return Adapter(fingerprint, tuple(layers))


def _stacked(parts: list[tuple[tuple[int, int], LowRank | None]]) -> LowRank:
    import torch

    none = [LowRank(torch.zeros(0, inputs), torch.zeros(outputs, 0)) for (outputs, inputs), _ in parts]
    pairs = [found or nothing for (_, found), nothing in zip(parts, none, strict=True)]
    shrink = torch.cat([pair.shrink for pair in pairs])
    expand = torch.zeros(sum(len(pair.expand) for pair in pairs), len(shrink))
    row = column = 0
    for pair in pairs:
        outputs, rank = pair.expand.shape
        expand[row : row + outputs, column : column + rank] = pair.expand
        row, column = row + outputs, column + rank
    return LowRank(shrink, expand)
