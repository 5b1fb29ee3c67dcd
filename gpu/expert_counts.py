"""How many tokens use each expert of each layer, while somebody wants to know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.devices import Device, download, upload
from pawl.gpu.models.config import Experts

if TYPE_CHECKING:
    from torch import Tensor


class ExpertCounts:
    """`CountsExperts` on a device: steps add to `counts`, int64 [layers, experts], where that is not None."""

    def __init__(self, experts: Experts, device: Device) -> None:
        self.counts: Any = None
        self.chosen = experts.chosen
        self.layers = experts.layers
        self._size = len(experts.layers), experts.count
        self._device = device
        self._kept: Any = None

    def start(self) -> None:
        """See `CountsExperts.start`."""
        self.counts = upload(np.zeros(self._size, np.int64), self._device)

    def stop(self) -> None:
        """See `CountsExperts.stop`."""
        self._kept, self.counts = self.counts, None

    def take(self) -> NDArray[np.int64]:
        """See `CountsExperts.take`."""
        if self.counts is not None:
            found: NDArray[np.int64] = download(self.counts).copy()
            self.counts[:] = 0
            return found
        kept, self._kept = self._kept, None
        return np.zeros(self._size, np.int64) if kept is None else download(kept)


def tally(counts: Tensor, chosen: Tensor) -> None:
    """Add the experts of some rows, [n, chosen], to those of their layer, int64 [experts]. Does not wait."""
    import torch

    numbers = chosen.reshape(-1).long()
    counts.index_add_(0, numbers, torch.ones_like(numbers))
