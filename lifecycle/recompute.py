"""What is computed again of a recorded run, and what comes of it: the seam between an audit and a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from pawl.lifecycle.columns import Float32s, Int32s
from pawl.lifecycle.records import Started
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import Indices
from pawl.lifecycle.step import PromptLogprobs, StepLogprobs

DETERMINISTIC = frozenset({"ghost", "native"})
"""Backends whose tokens depend on nothing but the request."""


def is_reproducible(started: Started) -> bool:
    """Whether the engine promised that what a request gets depends on nothing but the request and the model."""
    return started.config.get("backend") in DETERMINISTIC or started.config.get("deterministic") is True


class Content(NamedTuple):
    """What an adapter is, and where that may be read."""

    fingerprint: str
    sources: tuple[str, ...]
    """From the first that has this content; others may stand there by now."""


class Recorded(NamedTuple):
    """All that decides the words of one request, and the words."""

    tokens: Int32s
    """int32 [n], prompt and output"""
    num_prompt: int
    sampling: SamplingParameters
    adapter: Content | None = None
    """That the model computed it with; None: it had none."""


class Computed(NamedTuple):
    """The same request again: each token is drawn after the recorded ones before it."""

    tokens: Int32s
    """int32 [n - num_prompt], what is drawn in place of each output token"""
    chosen: Float32s
    """float32 [n], the log-probability of each recorded token; NaN where the request asked for none"""
    top_tokens: Int32s
    """int32 [n, k], the others in its place that the request asked for: the likeliest, then those that it named"""
    top: Float32s
    """float32 [n, k], of these; NaN where there are not so many"""
    digests: list[bytes]
    """Of its vector, where it wants one and that is made of finite numbers: one at the most"""

    @classmethod
    def unknown(cls, request: Recorded) -> Computed:
        """Nothing is computed yet."""
        count, width = len(request.tokens), request.sampling.num_rivals or 0
        return cls(
            np.full(count - request.num_prompt, -1, np.int32),
            np.full(count, np.nan, np.float32),
            np.zeros((count, width), np.int32),
            np.full((count, width), np.nan, np.float32),
            [],
        )

    def score(self, positions: Indices, scores: StepLogprobs | PromptLogprobs) -> None:
        """Enter the scores of the tokens at `positions` [m]."""
        width = min(self.top.shape[1], scores.top.shape[1])
        self.chosen[positions] = scores.chosen
        self.top_tokens[positions, :width] = scores.top_tokens[:, :width]
        self.top[positions, :width] = scores.top[:, :width]


Compute: TypeAlias = Callable[[Sequence[Recorded]], Sequence[Computed | None]]
"""The model: several requests at once, as it likes. None for a request whose adapter cannot be read any more."""


class CannotRecompute(Exception):
    """The model at hand is not the one that was recorded, or this machine cannot compute what that one did."""
