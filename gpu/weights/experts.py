"""Weights of experts under their canonical names: one matrix for each expert, whatever a checkpoint makes of them.

mlp.experts.N.gate_proj.weight                  canonical (Qwen3-MoE on the hub)
block_sparse_moe.experts.N.w1.weight            Mixtral on the hub; w1 gate, w2 down, w3 up
mlp.experts.gate_up_proj, mlp.experts.down_proj  all experts in one tensor (transformers 5, in memory)
mlp.experts.gate_proj.weight                    all experts in one tensor (GGUF, once its names are translated)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MIXTRAL_PARTS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_MIXTRAL_EXPERT = re.compile(r"(.*)\.block_sparse_moe\.experts\.(\d+)\.(w[123])\.weight")
_ALL_EXPERTS = re.compile(r"(.*\.mlp\.experts)\.(gate|up|down|gate_up)_proj(\.weight)?")
_ONE_EXPERT = re.compile(r"(.*\.mlp\.experts)\.\d+\.(\w+)\.weight")


def separated(name: str, tensor: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The tensor under its canonical name; one of all experts as one view for each. What is no expert's stays."""
    mixtral = _MIXTRAL_EXPERT.fullmatch(name)
    if mixtral is not None:
        layer, expert, part = mixtral.groups()
        yield f"{layer}.mlp.experts.{expert}.{_MIXTRAL_PARTS[part]}.weight", tensor
        return
    every = _ALL_EXPERTS.fullmatch(name)
    if every is None or len(tensor.shape) != 3:
        yield name.replace(".block_sparse_moe.gate.", ".mlp.gate."), tensor
        return
    stem, part, _ = every.groups()
    for expert, matrix in enumerate(tensor):
        if part == "gate_up":
            gate, up = np.split(matrix, [-(-len(matrix) // 2)])
            yield f"{stem}.{expert}.gate_proj.weight", gate
            yield f"{stem}.{expert}.up_proj.weight", up
        else:
            yield f"{stem}.{expert}.{part}_proj.weight", matrix


def stacked_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Canonical shapes with those of a layer's experts as one: `mlp.experts.gate_proj.weight` [experts, ...]."""
    stacked: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        one = _ONE_EXPERT.fullmatch(name)
        if one is None:
            stacked[name] = shape
        else:
            every = f"{one[1]}.{one[2]}.weight"
            stacked[every] = (stacked.get(every, (0,))[0] + 1, *shape)
    return stacked
