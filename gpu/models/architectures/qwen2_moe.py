"""Qwen 1.5 and Qwen 2 with experts: beside those that a router chooses, each layer has one that every token uses, by a
share of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Self

import msgspec

from pawl.gpu.models.architectures.base import Architecture, sparse_layers
from pawl.gpu.models.config import ModelConfig, Operation
from pawl.gpu.models.facts import Facts

GATE, UP, DOWN = (f"mlp.shared_expert.{part}_proj.weight" for part in ("gate", "up", "down"))
SHARE = "mlp.shared_expert_gate.weight"


class SharedExpert(Operation, frozen=True):
    """experts(h) + sigmoid(h . share) * mlp(h), in every layer of experts."""

    what: ClassVar[str] = "an expert that every token uses"
    size: int
    """Inner width."""

    def layer_shapes(self, config: ModelConfig, layer: int) -> dict[str, tuple[int, ...]]:
        """See `Operation.layer_shapes`."""
        if config.experts_of(layer) is None:
            return {}
        inner, hidden = self.size, config.hidden_size
        return {GATE: (inner, hidden), UP: (inner, hidden), DOWN: (hidden, inner), SHARE: (1, hidden)}

    def narrowed(self, columns: Callable[[int], range]) -> Self:
        """See `Operation.narrowed`."""
        return msgspec.structs.replace(self, size=len(columns(self.size)))


def _windows(facts: Facts, num_layers: int) -> Sequence[bool] | None:
    """Where the file switches windows on: in every second of the first `max_window_layers` layers."""
    if not facts.flag("use_sliding_window"):
        return None
    last = facts.whole("max_window_layers", least=0)
    return tuple(layer % 2 == 0 and layer < last for layer in range(num_layers))


def _refine(facts: Facts, config: ModelConfig) -> ModelConfig:
    config = msgspec.structs.replace(config, qkv_bias=facts.flag("qkv_bias"))
    config = sparse_layers(facts, config, facts.whole("num_experts", least=0))
    if config.experts is None:
        return config
    return msgspec.structs.replace(config, operation=SharedExpert(facts.whole("shared_expert_intermediate_size")))


QWEN2_MOE = Architecture(
    name="qwen2_moe",
    model_type="qwen2_moe",
    defaults={
        "max_position_embeddings": 32_768,
        "sliding_window": 4096,
        "max_window_layers": 28,
        "num_key_value_heads": 16,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "qkv_bias": True,
    },
    windows=_windows,
    refine=_refine,
    decoder="qwen2_moe:SharedExpertDecoder",
)
