"""Steps between their launch and their collection."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pawl.gpu.copies import Pending
from pawl.gpu.grammars.rows import Ruled
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
    """What both hold, on its way to the host."""
    ruled: Ruled | None
    """Rows whose tokens grammars must accept."""
    runs: StepResult | None = None
    """All that a step with runs gave: it was waited for when it was launched, and nothing else is set."""
    arrived: list[Tensor] | None = None
    """What has come to the host, once it was waited for."""
    refused: Bools | None = None
    """Rows whose grammars have not accepted their tokens."""
