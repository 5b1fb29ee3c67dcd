"""Stages of a model on several hosts: what one gives the next goes over links with keys, straight from rank to rank.

    stage 0 ── hidden states ──► stage 1 ── … ──► last stage
       ▲                                              │
       └───────────── tokens it has drawn ────────────┘

Of each rank one other sends to it, and it sends to one other: those with its tensor number. Ranks of one stage are on
one host, and meet there.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pawl.actors.runtime.processes.keys import Keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.gpu.dtypes import array_of
from pawl.gpu.native.ranks import RanksLost
from pawl.gpu.parallel.communicator import Communicator
from pawl.gpu.parallel.torch_groups import timed

_NUMBER = struct.Struct("<Q")
"""Behind the name of the start: messages on a link are numbered from 1."""


class StageLinks:
    """`Communicator` of a rank whose stages live on several hosts, for the life of its process."""

    waited_s = 0.0
    """See `Communicator.waited_s`."""

    def __init__(self, stage: Communicator, waits_at: str, keys: Keys, limit_s: float) -> None:
        """Waits for the rank before this one; `join` is next. `stage`: the other ranks of its own. Whoever waits in
        `receive` for longer than `limit_s` seconds does so in vain. Raises OSError."""
        self._stage = stage
        self._keys, self._limit_s = keys, limit_s
        self._start = b""
        self._num_sent = self._num_received = 0
        self._sockets = Sockets()
        import zmq

        self._zmq = zmq
        self._inbox: Any = self._sockets.socket(zmq.PULL, waits_at, keys, server=True)
        try:
            self._inbox.bind(waits_at)
        except zmq.ZMQError as error:
            raise OSError(error.errno, f"{waits_at}: {zmq.strerror(error.errno or 0)}") from error
        self.address: str = self._inbox.get(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        """Where it waits."""
        self._outbox: Any = None

    def join(self, address: str, start: bytes) -> None:
        """The rank behind this one waits at `address`. Of another `start` nothing is heard, or sent."""
        self._start = start
        self._outbox = self._sockets.socket(self._zmq.PUSH, address, self._keys, server=False)
        # Of steps there are never more on their way than stages and one.
        self._outbox.set(self._zmq.SNDHWM, 0)
        self._outbox.connect(address)

    @timed
    def all_reduce(self, tensor: Tensor) -> None:
        """See `Communicator.all_reduce`."""
        self._stage.all_reduce(tensor)

    @timed
    def all_gather(self, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        """See `Communicator.all_gather`."""
        return self._stage.all_gather(tensor, sizes)

    @timed
    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.broadcast`."""
        self._stage.broadcast(tensor, source)

    @timed
    def send(self, tensor: Tensor, stage: int) -> None:
        """See `Communicator.send`."""
        self._num_sent += 1
        head = self._start + _NUMBER.pack(self._num_sent)
        self._outbox.send_multipart([head, array_of(tensor.view(torch.uint8).reshape(-1))], copy=False)

    @timed
    def receive(self, tensor: Tensor, stage: int) -> None:
        """See `Communicator.receive`. Raises RanksLost where it does not come, or something before it has not."""
        content = self._next(time.perf_counter() + self._limit_s)
        if len(content) != tensor.nbytes:
            raise RanksLost(f"a stage has sent {len(content)} bytes, where {tensor.nbytes} were to come")
        tensor.copy_(torch.from_numpy(np.array(content, np.uint8)).view(tensor.dtype).view(tensor.shape))

    def close(self) -> None:
        """Neither send nor receive any more."""
        for end in (self._inbox, self._outbox):
            if end is not None:
                end.close(linger=0)
        self._sockets.close()

    def _next(self, until: float) -> Any:
        """Bytes of the next message of this start."""
        while True:
            if not self._inbox.poll(max(0.0, until - time.perf_counter()) * 1000.0):
                raise RanksLost(f"the stage before has sent nothing for {self._limit_s:g} s")
            head, *content = self._inbox.recv_multipart(copy=False)
            name = head.bytes
            if name[: len(self._start)] != self._start or len(content) != 1:
                continue  # it is none of this start, at an address that was another one's
            self._num_received += 1
            if name[len(self._start) :] != _NUMBER.pack(self._num_received):
                raise RanksLost("what the stage before has sent was lost on the way")
            return content[0].buffer
