"""Ranks that are threads of one process, for what does not need processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TypeVar

import torch
from torch import Tensor

from pawl.gpu.models.config import ModelConfig
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.shard import Placement, Shard
from pawl.gpu.parallel.topology import Topology

PATIENCE_S = 60.0
Result = TypeVar("Result")


class Meeting:
    """Where threads leave tensors for each other. One that fails to come breaks it for all."""

    def __init__(self, size: int) -> None:
        self._barrier = Barrier(size, timeout=PATIENCE_S)
        self._left: list[Tensor] = [torch.empty(0)] * size

    def exchange(self, number: int, tensor: Tensor) -> list[Tensor]:
        """What everybody has left, in the order of their numbers."""
        self._left[number] = tensor.clone()
        self._barrier.wait()
        found = list(self._left)
        self._barrier.wait()
        return found

    def leave(self) -> None:
        """Whoever waits, or comes later, fails."""
        self._barrier.abort()


class ThreadCommunicator:
    """`Communicator` of a thread, in one tensor group."""

    def __init__(self, meeting: Meeting, number: int) -> None:
        self._meeting = meeting
        self._number = number

    def all_reduce(self, tensor: Tensor) -> None:
        parts = self._meeting.exchange(self._number, tensor)
        assert len({part.shape for part in parts}) == 1, "ranks add up what has one shape"
        tensor.copy_(torch.stack(parts).sum(0))

    def all_gather(self, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        parts = self._meeting.exchange(self._number, tensor)
        assert [part.shape[1] for part in parts] == list(sizes)
        return torch.cat(parts, 1)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        tensor.copy_(self._meeting.exchange(self._number, tensor)[source])

    def send(self, tensor: Tensor, stage: int) -> None:
        raise NotImplementedError("one stage")

    def receive(self, tensor: Tensor, stage: int) -> None:
        raise NotImplementedError("one stage")


def on_ranks(
    config: ModelConfig, topology: Topology, do: Callable[[Rank], Result], placement: Placement = ()
) -> list[Result]:
    """What each rank returns."""
    meeting = Meeting(topology.tensor)

    def run(number: int) -> Result:
        try:
            shard = Shard(config, topology, number, placement)
            return do(Rank(shard, ThreadCommunicator(meeting, number)))
        except BaseException:
            meeting.leave()
            raise

    with ThreadPoolExecutor(topology.tensor) as pool:
        return list(pool.map(run, range(topology.tensor)))
