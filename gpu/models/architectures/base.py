"""What a row of the registry says of an architecture, so that one reader serves all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec
from numpy.typing import NDArray

from pawl.gpu.models.config import Experts, ModelConfig
from pawl.gpu.models.facts import Facts

Refine: TypeAlias = Callable[[Facts, ModelConfig], ModelConfig]
"""The configuration with what only this architecture's file says, from the one that holds the sizes."""


def as_it_is(_: Facts, config: ModelConfig) -> ModelConfig:
    """For an architecture whose sizes and fixed switches say everything."""
    return config


def no_windows(_: Facts, num_layers: int) -> Sequence[bool] | None:
    """For an architecture whose layers all see everything, whatever its file says."""
    return None


def all_windowed(_: Facts, num_layers: int) -> Sequence[bool] | None:
    """For an architecture in which every layer has the window that the file names."""
    return (True,) * num_layers


def keep(name: str, tensor: NDArray[Any], _: ModelConfig) -> Iterator[tuple[str, NDArray[Any]]]:
    """For checkpoints whose names are the canonical ones."""
    yield name, tensor


@dataclass(frozen=True, kw_only=True)
class GgufRow:
    """How llama.cpp writes the architecture."""

    name: str
    """Of `general.architecture`, and before every key."""
    refine: Refine = as_it_is
    layer_names: Mapping[str, str] = field(default_factory=dict)
    """Tensor of a layer -> canonical name, where it is not what Llama's file means by it."""
    interleaved: bool = False
    """Whether the rows of queries and keys are stored with rope pairs side by side."""
    expert_size: str | None = None
    """The key that holds the inner width of an expert; None: the architecture has no experts."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One row."""

    name: str
    model_type: str
    """Of a Hugging Face `config.json`."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What the model class takes for keys its file leaves out, where it is not what Llama takes."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ModelConfig that all its models have, in either format."""
    windows: Callable[[Facts, int], Sequence[bool] | None] = no_windows
    """Which of the layers have the window, where the file does not list them; None: none, even if it does."""
    refine: Refine = as_it_is
    """What else `config.json` says."""
    computes: Set[str] = frozenset()
    """Keys of `config.json` that must be off in other models, and that `refine` reads."""
    split: Callable[[str, NDArray[Any], ModelConfig], Iterator[tuple[str, NDArray[Any]]]] = keep
    """The canonical weights of one tensor of a checkpoint."""
    norm_offset: float = 0.0
    """Added to every norm's stored weight."""
    gguf: GgufRow | None = None
    decoder: str = ""
    """What computes its operation in plain torch: MODULE:CLASS in `pawl.gpu.models.decoders`, imported when it is used;
    empty: `TorchDecoder` computes all."""


def sparse_layers(facts: Facts, config: ModelConfig, count: int) -> ModelConfig:
    """`config` with the experts of Qwen's files: in every `decoder_sparse_step`-th layer, but `mlp_only_layers`."""
    step, dense = facts.whole("decoder_sparse_step", 1), facts.sequence("mlp_only_layers") or ()
    layers = tuple(count > 0 and i not in dense and (i + 1) % step == 0 for i in range(config.num_layers))
    if not any(layers):
        return config
    experts = Experts(
        count=count,
        chosen=facts.whole("num_experts_per_tok"),
        size=facts.whole("moe_intermediate_size"),
        normalised=facts.flag("norm_topk_prob"),
        layers=layers,
    )
    return msgspec.structs.replace(config, experts=experts)
