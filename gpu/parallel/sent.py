"""Weights on their way to ranks, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from numpy.typing import NDArray

from pawl.gpu.dtypes import dtype_of
from pawl.gpu.models.config import ModelConfig, weight_shapes
from pawl.gpu.parallel.placement import Move
from pawl.gpu.parallel.shard import Shard, joined
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.parallel.wire import Answer, ShowWeight, StageWeights
from pawl.gpu.step_runner import WeightsRefused
from pawl.gpu.updates import in_memory
from pawl.gpu.weights.safetensors import bytes_of_tensors
from pawl.lifecycle.weight_source import FromBytes, FromMemory, FromTensors

if TYPE_CHECKING:
    from pawl.gpu.parallel.group import RankGroup


def sendable(message: StageWeights) -> StageWeights:
    """The same with a source that can leave the process."""
    source: Any = message.source
    if isinstance(source, FromMemory):
        source = FromTensors(in_memory(source))
    if isinstance(source, FromTensors):
        source = FromBytes(bytes_of_tensors(source.tensors))
    return msgspec.structs.replace(message, source=source)


def expert_of(shown: Mapping[str, Any], move: Move) -> FromBytes:
    """An expert's weights, of those that a group shows."""
    stem = f"model.layers.{move.layer}.mlp.experts.{move.expert}"
    names = [f"{stem}.{part}_proj.weight" for part in ("gate", "up", "down")]
    return FromBytes(bytes_of_tensors({name: shown[name] for name in names}))


class ShownWeights(Mapping[str, NDArray[Any]]):
    """The weights of a group, each asked of its ranks when it is looked at, and put together."""

    def __init__(self, config: ModelConfig, topology: Topology, gathers: bool, group: RankGroup) -> None:
        self._stages = [
            [Shard(config, topology, number, gathers=gathers, stage=stage) for number in range(topology.tensor)]
            for stage in range(topology.pipeline)
        ]
        self._names = weight_shapes(config)
        self._group, self._version = group, group.version

    def __getitem__(self, name: str) -> NDArray[Any]:
        if name not in self._names:
            raise KeyError(name)
        answers = self._group.ask_beside(ShowWeight(name))
        if self._group.version != self._version:
            raise WeightsRefused("these weights were exchanged, and ranks keep none but those that serve")
        stages = zip(*[iter(answers)] * len(self._stages[0]), strict=True)
        # Of a weight that two stages have, that of the first one.
        shards, parts = next(
            (shards, parts) for shards, told in zip(self._stages, stages, strict=True) if (parts := _parts_of(told))
        )
        return joined(shards, name, parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _parts_of(answers: Sequence[Answer]) -> dict[int, NDArray[Any]]:
    """What the ranks of a stage have shown, by their numbers."""
    parts = {}
    for number, answer in enumerate(answers):
        if answer.data is not None:
            parts[number] = answer.data.copy().view(dtype_of(answer.dtype)).reshape(answer.shape)
    return parts
