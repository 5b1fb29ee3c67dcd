"""One request on a runner that it has for itself: no scheduler, no neighbours, no memory to share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np

from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import Int32s, SlotAssignment, StepBatch, StepResult


class OneAtATime(Protocol):
    """A runner with at least one slot, and as many pages as one request needs."""

    def launch(self, batch: StepBatch) -> Any: ...

    def collect(self, launched: Any) -> StepResult: ...

    def reset(self) -> None: ...


def steps_alone(
    runner: OneAtATime,
    known: Int32s,
    sampling: SamplingParameters,
    num_output: int,
    page_size: int,
    num_prompt: int | None = None,
    adapter: int = 0,
) -> Iterator[StepResult]:
    """What each step gives: all `known` tokens and the next one, then one token after the other, `num_output` in all,
    stopped by nothing. One step where that is 0. Those after the first `num_prompt` (None: all) are output already.
    `adapter`: number of the adapter slot that it computes with; 0: none."""
    num_prompt = len(known) if num_prompt is None else num_prompt
    runner.reset()
    none = np.zeros(0, np.int32)
    newcomer = SlotAssignment(0, sampling, num_prompt, known, len(known) - num_prompt, adapter)
    for step in range(max(num_output, 1)):
        first = not step
        pages = np.arange(-(-(len(known) + num_output) // page_size), dtype=np.int32) if first else none
        batch = StepBatch(
            step=step + 1,
            slots=np.zeros(1, np.int32),
            starts=np.array([0 if first else len(known) + step - 1], np.int32),
            lengths=np.array([len(known) if first else 1], np.int32),
            tokens=known if first else none,
            chained=np.array([not first]),
            samples=np.array([num_output > 0]),
            page_slots=np.zeros_like(pages),
            page_indices=pages,
            pages=pages,
            window_pages=None,
            admitted=(newcomer,) if first else (),
        )
        yield runner.collect(runner.launch(batch))
