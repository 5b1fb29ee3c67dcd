"""The experts of a simulated model, which are the same however many ranks compute them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.step import StepBatch

Int64s: TypeAlias = NDArray[np.int64]
NUM_EXPERTS = 4


class SimulatedExperts:
    """Those of the second of two layers (`CountsExperts`), of which every token uses one, most of them the same for a
    while."""

    chosen = 1
    layers = (False, True)

    def __init__(self) -> None:
        self._counts = self._none()
        self._counting = False

    def _none(self) -> Int64s:
        return np.zeros((len(self.layers), NUM_EXPERTS), np.int64)

    def start(self) -> None:
        self._counting, self._counts = True, self._none()

    def stop(self) -> None:
        self._counting = False

    def take(self) -> Int64s:
        found, self._counts = self._counts, self._none()
        return found

    def computed(self, batch: StepBatch) -> None:
        """A step has been computed."""
        if self._counting:
            tokens = np.arange(batch.lengths.sum())
            used = np.where(tokens % 3 < 2, batch.step // 16 % NUM_EXPERTS, tokens % NUM_EXPERTS)
            self._counts[1] += np.bincount(used, minlength=NUM_EXPERTS)
