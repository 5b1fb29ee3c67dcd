"""How the ranks of a model hear of each other inside a step. Every rank makes the same calls in the same order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Communicator(Protocol):
    """The other ranks, as one of them sees them. A call waits for the others, or on a device is queued behind the work
    before it. Raises RuntimeError where one of them is gone, after which only a new group helps."""

    waited_s: float
    """Seconds spent in these calls so far."""

    def all_reduce(self, tensor: Tensor) -> None:
        """Put the sum over the tensor group in the place of `tensor`, contiguous."""

    def all_gather(self, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        """The columns of all ranks of the tensor group beside each other, [n, sum(sizes)]: `tensor` is [n, sizes[own
        number]], and `sizes` are those of all."""

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Put what rank `source` of the tensor group has there in the place of `tensor`, contiguous."""

    def send(self, tensor: Tensor, stage: int) -> None:
        """Send `tensor`, contiguous, to the rank with the own tensor number in that stage, and do not wait until it
        takes it; nobody writes to `tensor` any more. It takes at the latest what was sent a few steps before."""

    def receive(self, tensor: Tensor, stage: int) -> None:
        """Fill `tensor`, contiguous, with what that rank sends."""


class Alone:
    """`Communicator` of one rank: there is nobody to wait for."""

    waited_s = 0.0

    def all_reduce(self, tensor: Tensor) -> None:
        """See `Communicator.all_reduce`."""

    def all_gather(self, tensor: Tensor, sizes: Sequence[int]) -> Tensor:
        """See `Communicator.all_gather`."""
        return tensor

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """See `Communicator.broadcast`."""

    def send(self, tensor: Tensor, stage: int) -> None:
        """There is no other stage."""
        raise ValueError(f"there is no stage {stage}")

    def receive(self, tensor: Tensor, stage: int) -> None:
        """There is no other stage."""
        raise ValueError(f"there is no stage {stage}")


ALONE = Alone()
