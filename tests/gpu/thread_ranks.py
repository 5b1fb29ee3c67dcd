"""Ranks that are threads of one process, for what does not need processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from threading import Barrier
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor

from pawl.gpu.models.config import ModelConfig
from pawl.gpu.parallel.placement import Placement
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.shard import Shard
from pawl.gpu.parallel.topology import Place, Topology

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


Mail: TypeAlias = Callable[[Place, int], SimpleQueue[Tensor]]
"""What was sent from a place to a stage and not received."""


class ThreadCommunicator:
    """`Communicator` of a thread."""

    waited_s = 0.0

    def __init__(self, meeting: Meeting, place: Place, mail: Mail) -> None:
        self._meeting = meeting
        self._place, self._number = place, place.tensor
        self._mail = mail

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
        self._mail(self._place, stage).put(tensor.clone())

    def receive(self, tensor: Tensor, stage: int) -> None:
        sent = self._mail(Place(stage, self._number), self._place.stage).get(timeout=PATIENCE_S)
        assert (sent.shape, sent.dtype) == (tensor.shape, tensor.dtype), "what is received has the shape that was sent"
        tensor.copy_(sent)


def on_ranks(
    config: ModelConfig, topology: Topology, do: Callable[[Rank], Result], placement: Placement = ()
) -> list[Result]:
    """What each rank returns."""
    meetings = [Meeting(topology.tensor) for _ in range(topology.pipeline)]
    on_their_way: defaultdict[tuple[Place, int], SimpleQueue[Tensor]] = defaultdict(SimpleQueue)

    def run(number: int) -> Result:
        place = topology.place(number)
        try:
            shard = Shard(config, topology, place.tensor, placement, stage=place.stage)
            mail: Mail = lambda sender, stage: on_their_way[sender, stage]  # noqa: E731
            return do(Rank(shard, ThreadCommunicator(meetings[place.stage], place, mail)))
        except BaseException:
            meetings[place.stage].leave()
            raise

    with ThreadPoolExecutor(topology.size) as pool:
        return list(pool.map(run, range(topology.size)))
