"""How a step's results come back to the host while later steps already compute.

On a CUDA device a plain copy waits for everything that was issued before it, the next step included. Here copies run on
a stream of their own, behind the step they belong to, and whoever wants the results waits for those copies alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pawl.gpu.devices import Array


class Pending(Protocol):
    """Copies on their way."""

    def wait(self) -> list[Array]:
        """The arrays on the host, in their order, once the copies are done. Called once."""


class Copies(Protocol):
    """Starts copies to the host."""

    def start(self, arrays: Sequence[Array]) -> Pending:
        """Copy the arrays as what has been issued so far leaves them. Returns at once on CUDA."""


class NoCopies:
    """`Copies` for what is on the host already."""

    def start(self, arrays: Sequence[Array]) -> Pending:
        """See `Copies.start`."""
        return Arrived(list(arrays))


class Arrived:
    """`Pending` of nothing that has to travel."""

    def __init__(self, arrays: list[Array]) -> None:
        self._arrays = arrays

    def wait(self) -> list[Array]:
        """See `Pending.wait`."""
        return self._arrays
