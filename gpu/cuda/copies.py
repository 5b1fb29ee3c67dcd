"""Copies to the host through pinned memory, beside what the device computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from pawl.gpu.copies import Pending
from pawl.gpu.devices import Array, new_stream

ALIGNMENT = 16
SMALLEST_BUFFER = 1 << 12


class BufferPool:
    """Byte buffers of host memory, lent one at a time: memory that a device can write to is slow to get."""

    def __init__(self, allocate: Callable[[int], Tensor]) -> None:
        """`allocate(n)` makes a uint8 tensor of n bytes."""
        self._allocate = allocate
        self._free: list[Tensor] = []

    def take(self, num_bytes: int) -> Tensor:
        """A buffer of at least `num_bytes`; its sizes are powers of two, so that a few serve all steps."""
        fitting = [index for index, buffer in enumerate(self._free) if len(buffer) >= num_bytes]
        if fitting:
            return self._free.pop(min(fitting, key=lambda index: len(self._free[index])))
        return self._allocate(max(SMALLEST_BUFFER, 1 << math.ceil(math.log2(max(num_bytes, 1)))))

    def give_back(self, buffer: Tensor) -> None:
        """`buffer` may be lent again."""
        self._free.append(buffer)


def places(tensors: Sequence[Tensor], buffer_of: Callable[[int], Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A buffer that holds all of `tensors`, from `buffer_of(bytes)`, and in it the place of each: same shape and dtype.
    Places do not overlap, and begin at multiples of `ALIGNMENT` bytes."""
    begins = [0]
    for tensor in tensors:
        begins.append(begins[-1] + -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT)
    buffer = buffer_of(begins[-1])
    found = [
        buffer[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for begin, tensor in zip(begins, tensors, strict=False)
    ]
    return buffer, found


class StreamCopies:
    """`Copies` from a CUDA device, on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = new_stream(device)
        self._pool = BufferPool(lambda num_bytes: torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True))

    def start(self, arrays: Sequence[Array]) -> Pending:
        """See `Copies.start`."""
        tensors = cast("Sequence[Tensor]", arrays)
        buffer, own = places(tensors, self._pool.take)
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for place, tensor in zip(own, tensors, strict=True):
                place.copy_(tensor, non_blocking=True)
        return OnStream(self._pool, buffer, own, list(tensors), self._stream.record_event())


class OnStream:
    """`Pending` on a stream."""

    def __init__(
        self, pool: BufferPool, buffer: Tensor, own: list[Tensor], sources: list[Tensor], done: torch.cuda.Event
    ) -> None:
        self._pool = pool
        self._buffer = buffer
        self._places = own
        # Their memory must not become somebody else's before they have been copied.
        self._sources = sources
        self._done = done

    def wait(self) -> list[Array]:
        """See `Pending.wait`."""
        self._done.synchronize()
        arrived: list[Array] = [place.clone() for place in self._places]
        self._pool.give_back(self._buffer)
        self._sources.clear()
        return arrived
