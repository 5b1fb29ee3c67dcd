"""What a rank has of a model: which rows or columns of which weight, as plain arithmetic.

    q, k, v and their biases     rows of its heads, in whole groups of the query heads that share a key head
    o                            columns of its heads            or rows, its outputs
    gate, up                     rows of its inner width         down    columns of it, or rows, its outputs
    embedding, head              rows of its part of the vocabulary
    experts                      its own, whole or their rows and columns
    norms, routers               all

A stage has some layers in a row, which it counts from 0 on. The first one has the embedding, the last one the final
norm and the head, which is the embedding once more where the model ties them.

9 heads in 3 groups are 6 and 3 for two ranks. What the ranks compute from `o`, `down`, experts and the embedding is
added up; logits are put beside each other. Nothing else of a step differs between them.

Where what is multiplied is gathered instead (`Shard.gathers`), nothing is added up: every rank sees whole rows, and has
rows of all weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.gpu.adapters.low_rank import PRODUCTS, Adapter, LowRank, Product
from pawl.gpu.models.config import ModelConfig, weight_shapes
from pawl.gpu.parallel.placement import Placed, Placement, even_placement
from pawl.gpu.parallel.topology import Topology, TopologyRefused, shared_out
from pawl.gpu.weights.blocks import Blocks, Weight, numbers_of
from pawl.gpu.weights.checks import Keep
from pawl.gpu.weights.fingerprint import Samples

if TYPE_CHECKING:
    from torch import Tensor

Some = TypeVar("Some", "NDArray[Any]", "Tensor", Blocks)
SomeArray = TypeVar("SomeArray", "NDArray[Any]", "Tensor")
_LAYER = re.compile(r"(model\.layers\.)(\d+)(\..*)")
_EXPERT = re.compile(r"model\.layers\.(\d+)\.mlp\.experts\.(\d+)\.")
_OF_HEADS = {"q_proj": 0, "k_proj": 0, "v_proj": 0, "o_proj": 1}
_OF_INNER = {"gate_proj": 0, "up_proj": 0, "down_proj": 1}
"""Module -> the axis of heads, or of the inner width."""
_GATHERED = ("o_proj", "down_proj")
"""Modules that would add up over ranks."""
PANEL = 32
"""Columns that the compiled kernels compute together: where ranks gather, a part begins at a multiple of it."""


class Cut(NamedTuple):
    """Some rows or columns of a weight."""

    axis: int
    kept: range

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """Of what is kept of a weight of this shape."""
        return tuple(len(self.kept) if axis == self.axis else size for axis, size in enumerate(whole))


@dataclass(frozen=True)
class Shard:
    """One rank's part of every layer. Raises TopologyRefused."""

    whole: ModelConfig
    topology: Topology
    tensor: int
    """The rank's number in its tensor group."""
    placement: Placement = ()
    """Empty: `even_placement`."""
    gathers: bool = False
    """Whether ranks gather what they multiply, and do not add up what comes of it: the compiled CPU kernels do."""
    stage: int = 0
    """The rank's stage."""

    def __post_init__(self) -> None:
        check_shares(self.whole, self.topology)

    # ---- shares ----

    @cached_property
    def layers(self) -> range:
        """Those of its stage, as the whole model counts them."""
        return shared_out(self.whole.num_layers, self.topology.pipeline)[self.stage]

    @property
    def first(self) -> bool:
        """Its stage begins with tokens."""
        return self.stage == 0

    @property
    def last(self) -> bool:
        """Its stage ends with scores."""
        return self.stage == self.topology.pipeline - 1

    @cached_property
    def groups(self) -> range:
        """Its key heads."""
        return shared_out(self.whole.num_kv_heads, self.topology.tensor)[self.tensor]

    @property
    def heads(self) -> range:
        """Its query heads: those of its key heads."""
        group = self.whole.num_heads // self.whole.num_kv_heads
        return range(self.groups.start * group, self.groups.stop * group)

    @cached_property
    def vocabulary(self) -> range:
        """Its rows of the embedding and of the head."""
        return self.vocabularies[self.tensor]

    @cached_property
    def vocabularies(self) -> tuple[range, ...]:
        """Those of all ranks."""
        return self._shared(self.whole.vocab_size, self.topology.tensor)

    @property
    def outputs(self) -> range:
        """Where ranks gather: its outputs of the output projection and of an MLP."""
        return self.columns(self.whole.hidden_size)

    @property
    def expert_outputs(self) -> range:
        """The same, of an expert that it has."""
        return self.expert_columns(self.whole.hidden_size)

    def columns(self, size: int) -> range:
        """Its part of so many columns that all ranks share out."""
        return self._shared(size, self.topology.tensor)[self.tensor]

    def expert_columns(self, size: int) -> range:
        """Its part of so many columns of an expert that it has."""
        _, number = self.topology.expert_place(self.tensor)
        return self._shared(size, self.topology.tensor // self.topology.expert)[number]

    def _shared(self, total: int, parts: int) -> tuple[range, ...]:
        return shared_out(total, parts, PANEL if self.gathers else 1)

    @property
    def part(self) -> int:
        """To which of those that share the experts out it belongs."""
        return self.topology.expert_place(self.tensor)[0]

    def placed(self, layer: int) -> Placed:
        """Which parts have the experts of this layer."""
        return (self.placement or self._even)[layer]

    def held(self, layer: int) -> tuple[int, ...]:
        """The experts of this layer that it has, rising."""
        return tuple(expert for expert, owners in enumerate(self.placed(layer)) if self.part in owners)

    @cached_property
    def copies(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each layer of its stage, of each expert that it has: which of the parts that have it this one is, and of
        how many."""
        part, layers = self.part, map(self.placed, self.layers)
        return tuple(tuple((each.index(part), len(each)) for each in placed if part in each) for placed in layers)

    @cached_property
    def _even(self) -> Placement:
        return even_placement(self.whole, self.topology.expert)

    @cached_property
    def config(self) -> ModelConfig:
        """The model as this rank computes it: the layers of its stage, fewer heads, less inner width, fewer words.
        Layers of experts have as many as before, for the router chooses among all. Where ranks gather it has fewer
        heads, and sees all else."""
        experts, layers = self.whole.experts, slice(self.layers.start, self.layers.stop)
        if experts is not None:
            experts = msgspec.structs.replace(experts, layers=experts.layers[layers])
        whole = msgspec.structs.replace(
            self.whole,
            num_layers=len(self.layers),
            windows=self.whole.windows[layers],
            experts=experts,
            num_heads=len(self.heads),
            num_kv_heads=len(self.groups),
        )
        if self.gathers:
            return whole
        if experts is not None:
            experts = msgspec.structs.replace(experts, size=len(self.expert_columns(experts.size)))
        return msgspec.structs.replace(
            whole,
            vocab_size=len(self.vocabulary),
            intermediate_size=len(self.columns(whole.intermediate_size)),
            experts=experts,
            operation=None if whole.operation is None else whole.operation.narrowed(self.columns),
        )

    # ---- weights ----

    @cached_property
    def cuts(self) -> Mapping[str, Cut | None]:
        """Of each weight that it has, by canonical name: which part; None: all of it."""
        shapes = self._whole_shapes
        return {name: self._cut(name, shape) for name, shape in shapes.items() if self._holds(name)}

    def cut_of(self, name: str) -> Cut | None:
        """Which part of a weight it has, or would have of an expert that is elsewhere; None: all of it."""
        return self._cut(name, self._whole_shapes[name])

    @cached_property
    def _whole_shapes(self) -> Mapping[str, tuple[int, ...]]:
        return weight_shapes(self.whole)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Those of the parts that it has, by the names in its own model."""
        whole = self._whole_shapes
        parts = ((name, whole[name] if cut is None else cut.shape(whole[name])) for name, cut in self.cuts.items())
        return {self.own_name(name): shape for name, shape in parts}

    def cut(self, name: str, weight: Some) -> Some | None:
        """The rank's part of a weight of the whole model, a copy where it is less than that; None where it has none of
        it. Of blocks only rows can be cut: where ranks gather, that is all there is."""
        return self.own_part(name, weight) if name in self.cuts else None

    def own_part(self, name: str, weight: Some) -> Some:
        """As `cut`, of a weight that it has or gets."""
        cut = self.cut_of(name)
        if cut is None:
            return weight
        if isinstance(weight, Blocks):
            return Blocks(_part(weight.data, cut), weight.format)
        return _part(weight, cut)

    def own_name(self, name: str) -> str:
        """Of a weight of the whole model that the rank has: its name in the rank's model."""
        return _LAYER.sub(lambda found: f"{found[1]}{int(found[2]) - self.layers.start}{found[3]}", name)

    def whole_name(self, name: str) -> str:
        """The inverse of `own_name`."""
        return _LAYER.sub(lambda found: f"{found[1]}{int(found[2]) + self.layers.start}{found[3]}", name)

    def _holds(self, name: str) -> bool:
        if found := _EXPERT.match(name):
            return int(found[1]) in self.layers and self.part in self.placed(int(found[1]))[int(found[2])]
        if found := _LAYER.match(name):
            return int(found[2]) in self.layers
        if name == "model.embed_tokens.weight":
            return self.first or (self.last and self.whole.tied_embeddings)
        return self.last

    def _cut(self, name: str, shape: Sequence[int]) -> Cut | None:
        *_, module, _ = name.split(".")
        if module in ("embed_tokens", "lm_head"):
            return Cut(0, self.vocabulary)
        if self.gathers and module in _GATHERED:
            return Cut(0, self.expert_outputs if _EXPERT.match(name) else self.outputs)
        if module in _OF_HEADS:
            width, heads = self.whole.head_dim, self.heads if module in ("q_proj", "o_proj") else self.groups
            return Cut(_OF_HEADS[module], range(heads.start * width, heads.stop * width))
        if module in _OF_INNER:
            axis = _OF_INNER[module]
            return Cut(axis, (self.expert_columns if _EXPERT.match(name) else self.columns)(shape[axis]))
        return None

    def adapter(self, adapter: Adapter) -> Adapter:
        """The rank's part of an adapter: what the parts add to a product is added up, or stands beside each other, as
        the product itself."""
        layers = [
            {product: self._low_rank(layer, product, low) for product, low in products.items()}
            for layer, products in enumerate(adapter.layers)
            if layer in self.layers
        ]
        return Adapter(adapter.fingerprint, tuple(layers))

    def _low_rank(self, layer: int, product: Product, low: LowRank) -> LowRank:
        import torch

        shapes, kept, first, axis = self._whole_shapes, [], 0, 0
        for part in PRODUCTS[product]:
            name = f"model.layers.{layer}.{part}.weight"
            cut = self._cut(name, shapes[name])
            assert cut is not None, "what adapters change is shared out"
            axis = cut.axis
            kept.append(torch.arange(first + cut.kept.start, first + cut.kept.stop))
            first += shapes[name][axis]
        rows = torch.cat(kept)
        if axis:
            return LowRank(low.shrink.index_select(1, rows), low.expand)
        return LowRank(low.shrink, low.expand.index_select(0, rows))


def keeper(shard: Shard | None, samples: Samples) -> Keep:
    """What a rank, or None for whoever has all, keeps of weights while they are loaded; `samples` sees all of them."""

    def keep(name: str, weight: NDArray[Any]) -> NDArray[Any] | None:
        samples.add(name, weight)
        return weight if shard is None else shard.cut(name, weight)

    return keep


def part_of(shard: Shard | None, weights: Mapping[str, NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """Of some weights of the whole model what a rank, or None for whoever has all, has."""
    if shard is None:
        return weights
    parts = ((name, shard.cut(name, weight)) for name, weight in weights.items())
    return named_own(shard, {name: part for name, part in parts if part is not None})


def named_own(shard: Shard | None, weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """What a rank, or None for whoever has all, has kept while weights were loaded, by the names in its own model."""
    return {name if shard is None else shard.own_name(name): weight for name, weight in weights.items()}


def _part(weight: SomeArray, cut: Cut) -> SomeArray:
    kept = (*[slice(None)] * cut.axis, slice(cut.kept.start, cut.kept.stop))
    if isinstance(weight, np.ndarray):
        return weight[kept].copy()
    return weight[kept].clone().contiguous()


def joined(shards: Sequence[Shard], name: str, parts: Mapping[int, Weight]) -> NDArray[Any]:
    """A weight of the whole model from the parts of the ranks of a tensor group that have some of it, by their numbers:
    the inverse of `Shard.cut`. Of ranks that have the same, the first one's counts."""
    different: dict[tuple[int, int], tuple[Cut, NDArray[Any]]] = {}
    for number, part in sorted(parts.items()):
        cut = shards[number].cut_of(name)
        if cut is None:
            return numbers_of(part)
        different.setdefault((cut.kept.start, cut.kept.stop), (cut, numbers_of(part)))
    cuts = [different[each] for each in sorted(different)]
    return np.concatenate([part for _, part in cuts], cuts[0][0].axis)


def check_shares(config: ModelConfig, topology: Topology) -> None:
    """Raises TopologyRefused where the model has less of something than there are ranks to share it."""
    experts = config.experts
    within = topology.tensor // topology.expert
    needs = [
        (f"tp {topology.tensor}", topology.tensor, config.num_kv_heads, "key heads, and a rank has one at the least"),
        (f"tp {topology.tensor}", topology.tensor, config.intermediate_size, "inner columns"),
        (f"tp {topology.tensor}", topology.tensor, config.vocab_size, "words"),
        (f"pp {topology.pipeline}", topology.pipeline, config.num_layers, "layers, and a stage has one at the least"),
        (f"ep {topology.expert}", topology.expert, experts.count if experts else 1, "experts in a layer"),
        (f"tp {topology.tensor} in {topology.expert} parts", within, experts.size if experts else within, "columns"),
    ]
    for asked, ranks, found, what in needs:
        if ranks > found:
            raise TopologyRefused(f"{asked}: this model has {found} {what}")
