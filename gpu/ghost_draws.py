"""Requests to a ghost that want more than the likeliest token: real sampling over the ghost's logits.

Temperature, truncation, penalties, bias, noise and log-probabilities are those of the models' runner; only the logits
are the ghost's. This is the ghost's only part that needs PyTorch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from gpu.backend import ForwardInputs
from gpu.ghost_language import VOCABULARY_SIZE, Language
from gpu.ghost_memory import Computed
from gpu.sampler import Draws, Sampler
from gpu.scoring import PromptScorer
from lifecycle.step import Admission, Int32s, PromptLogprobs, StepBatch, StepLogprobs

_CPU = torch.device("cpu")


class Drawn(NamedTuple):
    """What the special rows of a step got."""

    tokens: Int32s
    """One for each of them."""
    logprobs: StepLogprobs | None
    """Over all sampled rows of the step, NaN and token 0 where nobody asked."""
    prompt_logprobs: tuple[PromptLogprobs, ...]


class GhostDraws:
    """Sampling parameters and histories of the slots of one ghost."""

    def __init__(self, language: Language, num_slots: int) -> None:
        self._language = language
        self._sampler = Sampler(VOCABULARY_SIZE, num_slots)
        self._scorer = PromptScorer(num_slots)

    def reset(self) -> None:
        """Forget every slot."""
        self._sampler.reset()
        self._scorer.reset()

    def admit(self, admissions: Iterable[Admission]) -> None:
        """Take over the parameters of requests that enter a slot."""
        self._sampler.admit(admissions)
        self._scorer.admit(admissions)

    def draw(self, batch: StepBatch, computed: Computed, page_table: Int32s, special: NDArray[np.bool_]) -> Drawn:
        """Tokens for those of the sampled segments that are `special`, and scores of prompts."""
        rows, slots = computed.last_rows[batch.samples][special], batch.slots[batch.samples][special]
        positions = (batch.starts + batch.lengths)[batch.samples][special]
        scored = self._scorer.segments(batch)
        logit_rows = self._scorer.add_rows(scored, computed.offsets, rows)
        logits = torch.from_numpy(self._language.logits(computed.states[logit_rows], computed.tokens[logit_rows]))
        inputs = ForwardInputs(
            tokens=torch.from_numpy(computed.tokens.copy()),
            positions=computed.positions,
            slots=batch.slots,
            starts=batch.starts,
            lengths=batch.lengths,
            offsets=computed.offsets,
            page_table=page_table,
            logit_rows=logit_rows,
        )
        scores = self._scorer.score(batch, scored, inputs, logits)
        draws = Draws.none(_CPU)
        if len(slots):
            draws = self._sampler.sample(logits[np.searchsorted(logit_rows, rows)], slots, positions)
        self._scorer.sampled(slots)
        return Drawn(
            draws.tokens.numpy().astype(np.int32),
            _spread(draws.logprobs(), special),
            tuple(score.collect() for score in scores),
        )


def _spread(logprobs: StepLogprobs | None, special: NDArray[np.bool_]) -> StepLogprobs | None:
    """From the special rows to all sampled rows."""
    if logprobs is None:
        return None
    num_rows, num_top = len(special), logprobs.top.shape[1]
    chosen = np.full(num_rows, np.nan, np.float32)
    top = np.full((num_rows, num_top), np.nan, np.float32)
    top_tokens = np.zeros((num_rows, num_top), np.int32)
    chosen[special], top[special], top_tokens[special] = logprobs.chosen, logprobs.top, logprobs.top_tokens
    return StepLogprobs(chosen, top_tokens, top)
