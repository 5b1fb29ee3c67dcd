"""The child of `pawl.gpu.trainers.member`: joins one group, and receives what its trainer broadcasts.

Only tensors are received, as bytes, and nothing of what comes is unpickled. Nobody calls it but its parent.
"""

from __future__ import annotations

import mmap
import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial, reduce
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

import msgspec
import torch
import torch.distributed
from torch import Tensor

from pawl.gpu.children import ended_by_parent
from pawl.gpu.frames import read_frame, streams_of_child, write_frame
from pawl.gpu.trainers.wire import Expected, Setup, Told

dist: Any = torch.distributed
TRAINER = 0
"""The rank that broadcasts."""
UNTOUCHED = 0xFF
"""What each byte of the memory is before. A floating-point number that ends so is none, or near the largest."""
LONGEST = 300
"""Characters of what the library says."""


class NotReceived(Exception):
    """In words for whoever asked."""


def main() -> None:
    """Until the input ends, in whatever collective this is then."""
    ended_by_parent()
    source, target = streams_of_child()
    memories = socket.socket(fileno=int(sys.argv[1]))
    frames: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_read, args=(source, frames), daemon=True).start()
    setup = msgspec.msgpack.decode(frames.get(), type=Setup)
    joined: list[Any] = []
    _tell(target, lambda: joined.append(_joined(setup)))
    while joined:
        expected = msgspec.msgpack.decode(frames.get(), type=Expected)
        (memory,) = socket.recv_fds(memories, 1, 1)[1]
        try:
            _tell(target, partial(_receive, joined[0], setup, expected, memory))
        finally:
            os.close(memory)


def _read(source: IO[bytes], frames: SimpleQueue[bytes]) -> None:
    while (frame := read_frame(source)) is not None:
        frames.put(frame)
    os._exit(0)


def _tell(target: IO[bytes], do: Callable[[], object]) -> None:
    try:
        do()
        told = Told("")
    except NotReceived as error:
        told = Told(str(error))
    except Exception as error:
        told = Told(" ".join(str(error).split())[:LONGEST] or type(error).__name__)
    write_frame(target, msgspec.msgpack.encode(told))


def _joined(setup: Setup) -> Any:
    """The group, with the keys under which PyTorch itself keeps those of a process group of this name."""
    place, limit = setup.place, timedelta(seconds=setup.limit_s)
    if place.backend == "nccl" and not (dist.is_nccl_available() and torch.cuda.is_available()):
        raise NotReceived("this PyTorch has no nccl, or no GPU: the trainer's group must use gloo")
    store = dist.TCPStore(place.address, place.port, place.world_size, False, timeout=limit)
    device = "cpu" if place.backend == "gloo" else "cuda"
    for prefix in (place.group, f"{place.group}/", f"{device}/"):
        store = dist.PrefixStore(prefix, store)
    if place.backend == "gloo":
        return dist.ProcessGroupGloo(store, place.rank, place.world_size, limit)
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = limit
    return dist.ProcessGroupNCCL(store, place.rank, place.world_size, options)


def _receive(group: Any, setup: Setup, expected: Expected, memory: int) -> None:
    """All tensors, into the memory."""
    whole = torch.frombuffer(mmap.mmap(memory, expected.offsets[-1]), dtype=torch.uint8)
    dtypes = [getattr(torch, dtype) for dtype in expected.dtypes]
    places = zip(expected.offsets, expected.sizes, dtypes, strict=False)
    targets = [whole[offset : offset + size].view(dtype) for offset, size, dtype in places]
    if not expected.flat:
        _broadcast(group, setup, targets)
        return
    # As the trainer has put them together: numbers of several types in one that holds all of them.
    numbers = torch.empty(sum(map(len, targets)), dtype=reduce(torch.promote_types, dtypes))
    _broadcast(group, setup, [numbers])
    for target, part in zip(targets, torch.split(numbers, [len(target) for target in targets]), strict=True):
        target.copy_(part)


def _broadcast(group: Any, setup: Setup, targets: list[Tensor]) -> None:
    for target in targets:
        target.view(torch.uint8).fill_(UNTOUCHED)
    on_device = setup.place.backend == "nccl"
    # Gloo carries bytes of any type, and knows but few types.
    views = [target.cuda() if on_device else target.view(torch.uint8) for target in targets]
    for work in [group.broadcast(view, TRAINER) for view in views]:
        work.wait()
    for target, view in zip(targets, views, strict=True):
        if on_device:
            target.copy_(view)
        if (target[-1:].view(torch.uint8)[-1 if target.is_floating_point() else 0 :] == UNTOUCHED).all():
            raise NotReceived(
                f"the trainer has sent fewer bytes than it said, or numbers that no weight is: {target.dtype}"
            )


if __name__ == "__main__":
    main()
