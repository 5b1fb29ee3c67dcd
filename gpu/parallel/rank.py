"""One rank, as a backend knows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pawl.gpu.parallel.shard import Shard

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from pawl.gpu.native.ranks import Joined
    from pawl.gpu.parallel.communicator import Communicator


class Rank(NamedTuple):
    """What it has of a model, and how it hears of the others."""

    shard: Shard
    communicator: Communicator
    joined: Joined | None = None
    """Where the compiled CPU kernels meet, in place of the communicator, whose shards gather."""

    @property
    def waited_s(self) -> float:
        """Seconds that it has waited for the others."""
        return self.communicator.waited_s + (0.0 if self.joined is None else self.joined.waited_s)

    @property
    def ends(self) -> bool:
        """What its stage computes is scored, and not what another one goes on with."""
        return self.shard.last

    def begun(self, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What the stage before has computed of a step, [rows, hidden]; None where there is none before."""
        if self.shard.first:
            return None
        import torch

        hidden = torch.empty(rows, self.shard.whole.hidden_size, dtype=dtype, device=device)
        self.receive(hidden)
        return hidden

    def receive(self, hidden: Tensor) -> None:
        """The same, into `hidden`."""
        self.communicator.receive(hidden, self.shard.stage - 1)

    def pass_on(self, hidden: Tensor) -> None:
        """The next stage goes on with these, contiguous."""
        self.communicator.send(hidden, self.shard.stage + 1)
