"""Steps between their launch and their collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np
from msgspec import structs

from pawl.gpu.copies import Arrived, Pending
from pawl.gpu.devices import Array, download
from pawl.gpu.grammars.rows import Ruled
from pawl.gpu.pooling import Part, Pooler
from pawl.gpu.sampling.draws import Draws, PromptScores
from pawl.lifecycle.step import Bools, StepResult


class OutOfOrder(Exception):
    """Steps must be collected in the order they were launched, each once, and none across a `reset`."""

    def __init__(self, step: int, expected: int | None) -> None:
        super().__init__(f"step {step} cannot be collected; the oldest step in flight is {expected}")
        self.step = step
        self.expected = expected


@dataclass(eq=False)
class Launched:
    """A step on its way."""

    step: int
    draws: Draws
    prompt_scores: tuple[PromptScores, ...]
    pending: Pending
    """What these hold, on its way to the host."""
    ruled: Ruled | None
    """Rows whose tokens grammars must accept."""
    parts: tuple[Part, ...]
    """Of prompts whose vectors are wanted: what these are pooled from comes to the host last."""
    runs: StepResult | None = None
    """All that a step with runs gave beside vectors: it was waited for when it was launched."""
    arrived: list[Array] | None = None
    """What has come to the host, once it was waited for."""
    refused: Bools | None = None
    """Rows whose grammars have not accepted their tokens."""

    @classmethod
    def elsewhere(cls, step: int, nothing: Draws) -> Self:
        """A step that another stage of a pipeline draws for."""
        return cls(step, nothing, (), Arrived(nothing.arrays()), None, ())

    def result(self, arrived: list[Array], pooler: Pooler) -> StepResult:
        """What the step gave, from all that came to the host; vectors are pooled in the order of the steps."""
        arrays = iter(arrived)
        draws = self.draws.moved(list(islice(arrays, len(self.draws.arrays()))))
        prompt_scores = [part.moved(list(islice(arrays, len(part.scores.arrays())))) for part in self.prompt_scores]
        result = self.runs or StepResult(
            step=self.step,
            tokens=download(draws.tokens).astype(np.int32),
            logprobs=draws.logprobs(),
            prompt_logprobs=tuple(part.collect() for part in prompt_scores),
            unusable=draws.unusable(),
            refused=self.refused,
        )
        if not self.parts:
            return result
        return structs.replace(result, embeddings=pooler.pool(self.parts, download(next(arrays))))


def all_arrays(draws: Draws, prompt_scores: Sequence[PromptScores], hidden: Sequence[Array]) -> list[Array]:
    """All that comes to the host, in the order in which `Launched.result` takes it."""
    return [*draws.arrays(), *(array for part in prompt_scores for array in part.scores.arrays()), *hidden]
