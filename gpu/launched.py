"""Steps between their launch and their collection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Self

import numpy as np
from msgspec import structs
from torch import Tensor

from pawl.gpu.copies import Arrived, Pending
from pawl.gpu.grammars.rows import Ruled
from pawl.gpu.pooling import Part, Pooler
from pawl.gpu.sampling.sampler import Draws
from pawl.gpu.sampling.scoring import PromptScores
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
    arrived: list[Tensor] | None = None
    """What has come to the host, once it was waited for."""
    refused: Bools | None = None
    """Rows whose grammars have not accepted their tokens."""

    @classmethod
    def elsewhere(cls, step: int, nothing: Draws) -> Self:
        """A step that another stage of a pipeline draws for."""
        return cls(step, nothing, (), Arrived(nothing.tensors()), None, ())

    def result(self, arrived: list[Tensor], pooler: Pooler) -> StepResult:
        """What the step gave, from all that came to the host; vectors are pooled in the order of the steps."""
        tensors = iter(arrived)
        draws = self.draws.moved(list(islice(tensors, len(self.draws.tensors()))))
        prompt_scores = [part.moved(list(islice(tensors, len(part.scores.tensors())))) for part in self.prompt_scores]
        result = self.runs or StepResult(
            step=self.step,
            tokens=draws.tokens.numpy().astype(np.int32),
            logprobs=draws.logprobs(),
            prompt_logprobs=tuple(part.collect() for part in prompt_scores),
            unusable=draws.unusable(),
            refused=self.refused,
        )
        if not self.parts:
            return result
        return structs.replace(result, embeddings=pooler.pool(self.parts, next(tensors).numpy()))


def all_tensors(draws: Draws, prompt_scores: Sequence[PromptScores], hidden: Sequence[Tensor]) -> list[Tensor]:
    """All that comes to the host, in the order in which `Launched.result` takes it."""
    return [*draws.tensors(), *(tensor for part in prompt_scores for tensor in part.scores.tensors()), *hidden]
