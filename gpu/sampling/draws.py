"""What a step drew and scored: arrays of the device where its logits were, until they come to the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pawl.gpu.backend import NO_TOKEN
from pawl.gpu.devices import Array, Device, download, upload
from pawl.lifecycle.step import Bools, Int32s, PromptLogprobs, StepLogprobs


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-probabilities of some rows."""

    chosen: Array
    """float32 [n]"""
    top_tokens: Array
    """int64 [n, k], of each row the likeliest, then the named"""
    top: Array
    """float32 [n, k]"""
    ranks: Array | None = None
    """int64 [n], how many tokens are at least as likely as the chosen one; None where nobody asks for it."""

    def arrays(self) -> list[Array]:
        """Chosen, top tokens, top, and ranks where they are there."""
        return [each for each in (self.chosen, self.top_tokens, self.top, self.ranks) if each is not None]


@dataclass(frozen=True, eq=False)
class PromptScores:
    """Scores of one segment."""

    slot: int
    start: int
    scores: Scores

    def moved(self, arrays: list[Array]) -> PromptScores:
        """The same scores, with their arrays somewhere else."""
        return PromptScores(self.slot, self.start, Scores(*arrays))

    def collect(self) -> PromptLogprobs:
        """On the host."""
        scores = self.scores
        assert scores.ranks is not None
        return PromptLogprobs(
            slot=self.slot,
            start=self.start,
            chosen=download(scores.chosen),
            top_tokens=download(scores.top_tokens).astype(np.int32),
            top=download(scores.top),
            ranks=download(scores.ranks).astype(np.int32),
        )


@dataclass(frozen=True, eq=False)
class Draws:
    """What one call drew."""

    tokens: Array
    """integers [n]"""
    scored_rows: Int32s
    """Rows whose request asked for log-probabilities."""
    scores: Scores | None
    """Scores of `scored_rows`; None where there are none."""
    usable: Array
    """bool [n]: whether all logits of the row were finite numbers. Where not, the token is any."""

    @classmethod
    def plain(cls, tokens: Array, usable: Array) -> Draws:
        """Tokens without scores."""
        return cls(tokens, np.zeros(0, np.int32), None, usable)

    @classmethod
    def greedy(cls, tokens: Array) -> Draws:
        """What a `GreedyBackend` gave, NO_TOKEN among it."""
        usable: Array = tokens != NO_TOKEN
        return cls.plain(tokens * usable, usable)

    @classmethod
    def none(cls, device: Device) -> Draws:
        """No rows."""
        return cls.plain(*(upload(np.zeros(0, dtype), device) for dtype in (np.int64, np.bool_)))

    def arrays(self) -> list[Array]:
        """What the host will want to know."""
        return [self.tokens, self.usable, *([] if self.scores is None else self.scores.arrays())]

    def moved(self, arrays: list[Array]) -> Draws:
        """The same draws, with `arrays()` somewhere else."""
        tokens, usable, *scores = arrays
        return Draws(tokens, self.scored_rows, Scores(*scores) if scores else None, usable)

    def unusable(self) -> Bools | None:
        """On the host: rows without a token; None where there is none of them."""
        usable: Bools = download(self.usable)
        return None if usable.all() else ~usable

    def logprobs(self) -> StepLogprobs | None:
        """On the host, aligned with `tokens`; NaN and token 0 in rows that did not ask."""
        if self.scores is None:
            return None
        num_rows, width = len(self.tokens), self.scores.top.shape[1]
        chosen = np.full(num_rows, np.nan, np.float32)
        top = np.full((num_rows, width), np.nan, np.float32)
        top_tokens = np.zeros((num_rows, width), np.int32)
        chosen[self.scored_rows] = download(self.scores.chosen)
        top[self.scored_rows] = download(self.scores.top)
        top_tokens[self.scored_rows] = download(self.scores.top_tokens)
        return StepLogprobs(chosen, top_tokens, top)
