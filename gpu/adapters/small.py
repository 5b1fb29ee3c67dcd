"""Random adapters, for whoever measures or checks and needs no answers that make sense."""

from __future__ import annotations

from collections.abc import Container

import torch

from pawl.gpu.adapters.low_rank import Adapter, LowRank, adaptable, fused
from pawl.gpu.ghost.language import adapter_salt_of
from pawl.gpu.models.config import ModelConfig

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def random_adapter(config: ModelConfig, rank: int, seed: int, parts: Container[str] = ALL) -> Adapter:
    """The same for the same seed: of these matrices of every layer, strong enough to change what a model says."""
    generator = torch.Generator().manual_seed(seed)
    matrices = {
        name: LowRank(
            torch.randn(rank, inputs, generator=generator) * inputs**-0.5,
            torch.randn(outputs, rank, generator=generator) * 0.3,
        )
        for name, (outputs, inputs) in adaptable(config).items()
        if name.rsplit(".", 1)[1] in parts
    }
    return fused(config, f"{rank} {seed}", matrices)


def named_adapter(source: str, config: ModelConfig) -> Adapter:
    """In place of reading a folder: an adapter for each name that a ghost's may have. Raises AdapterRefused."""
    salt = adapter_salt_of(source)
    return random_adapter(config, 1 + salt % 5, salt >> 1)
