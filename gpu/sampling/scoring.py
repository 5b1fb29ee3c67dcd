"""Log-probabilities of a prompt's own tokens.

A prompt's token is scored by the logits of the position before it. Within a chunk those are at hand; the first token of
the next chunk is scored by the last logits of this one, which are kept for the slot until then.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pawl.gpu.backend import ForwardInputs
from pawl.gpu.devices import Device, copied, joined
from pawl.gpu.sampling.draws import PromptScores
from pawl.gpu.sampling.operations import operations_on
from pawl.gpu.sampling.rivals import Rivals
from pawl.lifecycle.step import Int32s, SlotAssignment, StepBatch


class PromptScorer:
    """Which slots want their prompt scored, and the logits that reach over a chunk's end."""

    def __init__(self, num_slots: int, device: Device) -> None:
        """For logits on `device`."""
        self._score = operations_on(device).score
        self._wanted = np.zeros(num_slots, np.bool_)
        self._rivals = Rivals(num_slots)
        self._kept: dict[int, tuple[int, Any]] = {}
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

    def score(self, batch: StepBatch, segments: Int32s, inputs: ForwardInputs, logits: Any) -> tuple[PromptScores, ...]:
        """Score the tokens of `segments` from `logits` [len(inputs.logit_rows), vocab]."""
        results = []
        for segment in segments:
            slot, start = int(batch.slots[segment]), int(batch.starts[segment])
            first, last = int(inputs.offsets[segment]), int(inputs.offsets[segment + 1])
            begin = int(np.searchsorted(inputs.logit_rows, first))
            rows = logits[begin : begin + last - first]
            tokens = inputs.tokens[first:last]
            kept = self._kept.pop(slot, None)
            if kept is not None and kept[0] == start - 1:
                results.append(self._scores(slot, start - 1, joined((kept[1], rows[:-1])), tokens))
            elif len(tokens) > 1:
                results.append(self._scores(slot, start, rows[:-1], tokens[1:]))
            if not batch.samples[segment]:
                self._kept[slot] = start + len(tokens) - 1, copied(rows[-1:])
        return tuple(results)

    def _scores(self, slot: int, start: int, logits: Any, tokens: Any) -> PromptScores:
        columns = self._rivals.columns(np.array([slot], np.int32)).repeated(len(tokens))
        return PromptScores(slot, start, self._score(logits, tokens, columns, ranked=True))

    def sampled(self, slots: Int32s) -> None:
        """These requests draw: their prompts are behind them."""
        self._wanted[slots] = False
