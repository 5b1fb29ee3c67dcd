"""`Communicator` over torch.distributed: gloo between processes with a CPU each, nccl between CUDA devices.

A mesh makes the groups, and nothing else: layers are shared out by hand. No object is sent, so none is unpickled.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

from pawl.gpu.parallel.topology import Place, Topology

dist: Any = torch.distributed
SENDS_OF_A_STAGE = 4
"""A step has two at the most, and of steps there are never more on their way than stages and one."""


Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")


def timed(call: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A method of `TorchGroups` whose seconds are added to those that its rank has waited."""

    @wraps(call)
    def measured(*arguments: Arguments.args, **named: Arguments.kwargs) -> Result:
        groups: Any = arguments[0]
        began = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            groups.waited_s += time.perf_counter() - began

    return measured


class TorchGroups:
    """The groups of one rank, for the life of its process."""

    waited_s = 0.0
    """See `Communicator.waited_s`; between devices, where calls are queued, it is the time of queueing alone."""

    def __init__(self, topology: Topology, rank: int, device: torch.device, store: Path, limit_s: float) -> None:
        """Meet the others: all of one start name the same file `store`, which no other start has named. Raises
        RuntimeError where they are not all there within `limit_s` seconds, or where one call takes longer later."""
        # All on one machine, and to be reached from no other. Without it gloo looks the machine's own name up.
        for library in ("GLOO", "NCCL"):
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", "lo")
        if device.type != "cpu":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl",
            init_method=f"file://{store}",
            rank=rank,
            world_size=topology.size,
            timeout=timedelta(seconds=limit_s),
        )
        mesh = init_device_mesh(
            device.type, (topology.pipeline, topology.tensor), mesh_dim_names=("pipeline", "tensor")
        )
        self._topology = topology
        self._place = topology.place(rank)
        self._tensor = mesh.get_group("tensor")
        self._sent: deque[tuple[Any, Tensor]] = deque()
        """What others may not have taken yet."""

    @timed
    def all_reduce(self, tensor: Tensor) -> None:
        """See `Communicator.all_reduce`."""
        dist.all_reduce(tensor, group=self._tensor)

    @timed
    def all_gather(self, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        """See `Communicator.all_gather`."""
        widest = max(sizes)
        # What is gathered has one shape.
        padded = torch.nn.functional.pad(tensor, (0, widest - tensor.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self._tensor)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], 1)

    @timed
    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.broadcast`."""
        dist.broadcast(tensor, self._topology.rank(Place(self._place.stage, source)), group=self._tensor)

    @timed
    def send(self, tensor: Tensor, stage: int) -> None:
        """See `Communicator.send`."""
        self._sent.append((dist.isend(tensor, self._topology.rank(Place(stage, self._place.tensor))), tensor))
        if len(self._sent) > SENDS_OF_A_STAGE * self._topology.pipeline:
            self._sent.popleft()[0].wait()

    @timed
    def receive(self, tensor: Tensor, stage: int) -> None:
        """See `Communicator.receive`."""
        dist.recv(tensor, self._topology.rank(Place(stage, self._place.tensor)))
