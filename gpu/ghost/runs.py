"""A ghost that draws runs: several tokens for a decoding segment of several positions, as after accepted drafts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import structs

from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.step import Int32s, StepBatch, StepResult

_NONE: Int32s = np.empty(0, np.int32)


class RunningGhost(Ghost):
    """`accept(length)` says how many tokens it draws for a run of so many positions, from 1 to `length`. What was
    computed for drafts that it does not accept is not there: whoever reads those positions without writing them faults.
    """

    accept: Callable[[int], int] = staticmethod(lambda length: length)

    def launch(self, batch: StepBatch) -> StepResult:
        runs = batch.chained & (batch.lengths > 1)
        if not runs.any():
            return super().launch(batch)
        accepted = np.array([self.accept(length) for length in batch.lengths[runs].tolist()], np.int32)
        drawn = super().launch(structs.replace(batch, lengths=np.where(runs, 1, batch.lengths).astype(np.int32)))
        counts = np.where(runs, 0, 1).astype(np.int32)
        counts[runs] = accepted
        tokens = [[token] for token in drawn.tokens.tolist()]
        place = np.cumsum(batch.samples) - 1
        for ahead in range(1, int(accepted.max())):
            going_on = np.flatnonzero(runs & (counts > ahead)).astype(np.int32)
            result = super().launch(self._one_further(batch, going_on, ahead))
            for index, token in zip(going_on.tolist(), result.tokens.tolist(), strict=True):
                tokens[place[index]].append(token)
        flat = np.array([token for run in tokens for token in run], np.int32)
        return StepResult(batch.step, flat, counts=counts[batch.samples])

    def _one_further(self, batch: StepBatch, segments: Int32s, ahead: int) -> StepBatch:
        """The next position of these segments, as a step of its own."""
        ones = np.ones(len(segments), np.int32)
        yes = ones.astype(np.bool_)
        window = None if batch.window_pages is None else _NONE
        starts = batch.starts[segments] + ahead
        return StepBatch(batch.step, batch.slots[segments], starts, ones, _NONE, yes, yes, _NONE, _NONE, _NONE, window)
