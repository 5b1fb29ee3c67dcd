"""One request on a runner that it has for itself: no scheduler, no neighbours, no memory to share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import Int32s, SlotAssignment, StepBatch, StepResult

_LOOKED_AT = (0.0, 0.3, 0.6)
"""Which tokens are read, as a share of all."""


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
    windows: bool = False,
) -> Iterator[StepResult]:
    """What each step gives: all `known` tokens and the next one, then one token after the other, `num_output` in all,
    stopped by nothing. One step where that is 0. Those after the first `num_prompt` (None: all) are output already.
    `adapter`: number of the adapter slot that it computes with; 0: none. `windows`: windowed layers have a store of
    their own."""
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
            window_pages=pages if windows else None,
            admitted=(newcomer,) if first else (),
        )
        yield runner.collect(runner.launch(batch))


class NoScores(Exception):
    """A model gives no scores that are numbers."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(
            f"{path}: the model's scores are not finite numbers, whatever it reads: its weights are finite, and some "
            "are too large to be computed with in this type"
        )


def check_scores(runner: OneAtATime, path: Path | str, num_tokens: int, page_size: int, *, windows: bool) -> None:
    """Have the model at `path` read one token, and another one where that says nothing: raises NoScores where it has
    numbers for none of a few, as then no request could be answered. The runner is left with no slot in use."""
    greedy = SamplingParameters(temperature=0.0, max_new_tokens=1)
    try:
        for share in _LOOKED_AT:
            known = np.array([int(share * num_tokens)], np.int32)
            (result,) = steps_alone(runner, known, greedy, 1, page_size, windows=windows)
            if result.unusable is None or not result.unusable.any():
                return
    finally:
        runner.reset()
    raise NoScores(path)
