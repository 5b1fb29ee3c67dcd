"""Phi-3: a Llama whose checkpoints hold the three projections of attention, and both halves of an MLP,
in one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from pawl.gpu.models.architectures.base import Architecture, all_windowed
from pawl.gpu.models.config import ModelConfig


def _split(name: str, tensor: NDArray[Any], config: ModelConfig) -> Iterator[tuple[str, NDArray[Any]]]:
    sizes = {
        "qkv_proj": {"q_proj": config.query_size, "k_proj": config.kv_size, "v_proj": config.kv_size},
        "gate_up_proj": {"gate_proj": config.intermediate_size, "up_proj": config.intermediate_size},
    }
    for fused, parts in sizes.items():
        # A matrix of another size keeps its name, and is refused by it.
        if name.endswith(f".{fused}.weight") and len(tensor) == sum(parts.values()):
            begin = 0
            for part, rows in parts.items():
                yield name.replace(fused, part), tensor[begin : begin + rows]
                begin += rows
            return
    yield name, tensor


PHI3 = Architecture(
    name="phi3",
    model_type="phi3",
    defaults={"max_position_embeddings": 4096, "rms_norm_eps": 1e-5},
    windows=all_windowed,
    split=_split,
)
