"""Groups of two simulated ranks, and one request that they compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from pawl.gpu.alone import steps_alone
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.parallel.group import RankGroup
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import StepBatch
from pawl.testing.ranks import simulated_group

PAGE, PAGES = 4, 6
GREEDY = SamplingParameters(temperature=0.0)
PROMPT = np.arange(40, 49, dtype=np.int32)


def ghost() -> Ghost:
    return Ghost(num_pages=PAGES, page_size=PAGE, num_slots=1, max_context=PAGE * PAGES)


class Faults:
    """Strike once each, at the place that is named."""

    def __init__(self) -> None:
        self.wanted: list[str] = []

    def __call__(self, place: str) -> bool:
        if place not in self.wanted:
            return False
        self.wanted.remove(place)
        return True


def group_of(faults: Callable[[str], bool] | None = None) -> RankGroup:
    return simulated_group([ghost(), ghost()], faults or Faults(), pytest.fail, clock=lambda: 0.0)


def drawn(runner: RankGroup | Ghost, num_output: int = 5, adapter: int = 0) -> list[int]:
    steps = steps_alone(runner, PROMPT, GREEDY, num_output, PAGE, adapter=adapter)
    return [int(result.tokens[0]) for result in steps]


def batches(num_output: int) -> list[StepBatch]:
    """What one request alone is computed with."""
    seen: list[StepBatch] = []

    class Watched(Ghost):
        def launch(self, batch: StepBatch) -> object:  # type: ignore[override]
            seen.append(batch)
            return super().launch(batch)

    drawn(Watched(num_pages=PAGES, page_size=PAGE, num_slots=1, max_context=PAGE * PAGES), num_output)
    return seen
