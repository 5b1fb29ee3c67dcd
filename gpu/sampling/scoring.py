"""Log-probabilities: of drawn tokens, and of a prompt's own tokens.

A prompt's token is scored by the logits of the position before it. Within a chunk those are at hand; the first token of
the next chunk is scored by the last logits of this one, which are kept for the slot until then.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from pawl.gpu.backend import ForwardInputs
from pawl.gpu.devices import upload
from pawl.gpu.sampling.rivals import LIKELIEST, Columns, Rivals
from pawl.lifecycle.request import MAX_TOP_LOGPROBS
from pawl.lifecycle.step import Int32s, PromptLogprobs, SlotAssignment, StepBatch

# Rows scored at a time: the log-probabilities of a long chunk over a large vocabulary would take gigabytes.
BLOCK = 64


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-probabilities of some rows, still on the device."""

    chosen: Tensor
    """float32 [n]"""
    top_tokens: Tensor
    """int64 [n, k], of each row the likeliest, then the named"""
    top: Tensor
    """float32 [n, k]"""

    def tensors(self) -> list[Tensor]:
        """Chosen, top tokens, top."""
        return [self.chosen, self.top_tokens, self.top]


def score(logits: Tensor, chosen: Tensor, columns: Columns) -> Scores:
    """Log-probabilities of the tokens `chosen` [n] and of those in `columns` under `logits` [n, vocab]."""
    blocks = [slice(first, first + BLOCK) for first in range(0, len(chosen), BLOCK)]
    parts = [_score_block(logits[block], chosen[block], columns, block) for block in blocks]
    if len(parts) == 1:
        return parts[0]
    return Scores(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Scores)))


def _score_block(logits: Tensor, chosen: Tensor, columns: Columns, block: slice) -> Scores:
    # The softmax kernel adds up each row by itself, so a row's scores do not depend on its batch.
    logprobs = logits.log_softmax(-1)
    # Always as many: which of equally likely tokens comes first depends on how many are looked for.
    top, top_tokens = logprobs.topk(min(MAX_TOP_LOGPROBS, logprobs.shape[1]))
    own, width = logprobs.gather(1, chosen[:, None])[:, 0], columns.width
    if columns.named is None:
        return Scores(own, top_tokens[:, :width], top[:, :width])
    named = upload(columns.named[block], logits.device)
    likeliest = pad(top_tokens, (0, max(0, width - top_tokens.shape[1])))[:, :width]
    tokens = torch.where(named == LIKELIEST, likeliest, named)
    return Scores(own, tokens, logprobs.gather(1, tokens))


@dataclass(frozen=True, eq=False)
class PromptScores:
    """Scores of one segment, still on the device."""

    slot: int
    start: int
    scores: Scores

    def moved(self, tensors: list[Tensor]) -> PromptScores:
        """The same scores, with their tensors somewhere else."""
        return PromptScores(self.slot, self.start, Scores(*tensors))

    def collect(self) -> PromptLogprobs:
        """On the host."""
        scores = self.scores
        return PromptLogprobs(
            slot=self.slot,
            start=self.start,
            chosen=scores.chosen.cpu().numpy(),
            top_tokens=scores.top_tokens.cpu().numpy().astype(np.int32),
            top=scores.top.cpu().numpy(),
        )


class PromptScorer:
    """Which slots want their prompt scored, and the logits that reach over a chunk's end."""

    def __init__(self, num_slots: int) -> None:
        self._wanted = np.zeros(num_slots, np.bool_)
        self._rivals = Rivals(num_slots)
        self._kept: dict[int, tuple[int, Tensor]] = {}
        """slot -> (position, the logits [1, vocab] at that position)"""

    def reset(self) -> None:
        """Forget every slot."""
        self._wanted[:] = False
        self._rivals.reset()
        self._kept.clear()

    def admit(self, admissions: Iterable[SlotAssignment]) -> None:
        """A request that returns with output has had its prompt scored before it was retracted."""
        for admission in admissions:
            self._wanted[admission.slot] = admission.sampling.prompt_logprobs and admission.num_output == 0
            self._rivals.admit(admission.slot, admission.sampling)
            self._kept.pop(admission.slot, None)

    def segments(self, batch: StepBatch) -> Int32s:
        """Indices of the segments whose tokens are to be scored; most often none."""
        return np.flatnonzero(self._wanted[batch.slots]).astype(np.int32)

    def add_rows(self, segments: Int32s, offsets: Int32s, rows: Int32s) -> Int32s:
        """`rows` and all rows of `segments`, rising."""
        if not len(segments):
            return rows
        return np.unique(np.concatenate([rows, *(np.arange(offsets[i], offsets[i + 1]) for i in segments)])).astype(
            np.int32
        )

    def score(
        self, batch: StepBatch, segments: Int32s, inputs: ForwardInputs, logits: Tensor
    ) -> tuple[PromptScores, ...]:
        """Score the tokens of `segments` from `logits` [len(inputs.logit_rows), vocab]."""
        results = []
        for segment in segments:
            slot, start = int(batch.slots[segment]), int(batch.starts[segment])
            first, last = int(inputs.offsets[segment]), int(inputs.offsets[segment + 1])
            begin = int(np.searchsorted(inputs.logit_rows, first))
            rows = logits[begin : begin + last - first]
            tokens = inputs.tokens[first:last].long()
            kept = self._kept.pop(slot, None)
            if kept is not None and kept[0] == start - 1:
                results.append(self._scores(slot, start - 1, torch.cat((kept[1], rows[:-1])), tokens))
            elif len(tokens) > 1:
                results.append(self._scores(slot, start, rows[:-1], tokens[1:]))
            if not batch.samples[segment]:
                self._kept[slot] = start + len(tokens) - 1, rows[-1:].clone()
        return tuple(results)

    def _scores(self, slot: int, start: int, logits: Tensor, tokens: Tensor) -> PromptScores:
        columns = self._rivals.columns(np.array([slot], np.int32)).repeated(len(tokens))
        return PromptScores(slot, start, score(logits, tokens, columns))

    def sampled(self, slots: Int32s) -> None:
        """These requests draw: their prompts are behind them."""
        self._wanted[slots] = False
