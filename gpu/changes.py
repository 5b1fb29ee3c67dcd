"""Which entries of the page tables were set since the backend last saw them."""

from __future__ import annotations

import numpy as np

from pawl.lifecycle.step import Int32s, StepBatch

_NOTHING = np.zeros(0, np.int32)


class Changes:
    """Pairs (slot, index), in the order in which they were set."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Int32s, Int32s]] = []

    def add(self, batch: StepBatch) -> None:
        """The entries that a batch sets."""
        if len(batch.page_slots):
            self._pairs.append((batch.page_slots, batch.page_indices))

    def take(self) -> tuple[Int32s, Int32s]:
        """(slots, indices) of what the backend has not seen; it will have."""
        slots, indices = zip((_NOTHING, _NOTHING), *self._pairs, strict=True)
        self.reset()
        return np.concatenate(slots), np.concatenate(indices)

    def reset(self) -> None:
        """The backend has seen everything."""
        self._pairs.clear()
