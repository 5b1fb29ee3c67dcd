"""A ghost whose batches a test makes by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import Int32s, SlotAssignment, StepBatch, StepResult

PAGE = 4
CONTEXT = 64
GREEDY = SamplingParameters(temperature=0.0)


def int32s(values: Any) -> Int32s:
    return np.array(values, np.int32)


class Rows:
    """A ghost with a row of pages for each slot, in no order, and the batches that a scheduler would send it."""

    def __init__(self, num_slots: int = 3, *, window: int | None = None, **options: Any) -> None:
        per_slot = CONTEXT // PAGE
        self.pages = np.random.default_rng(0).permutation(num_slots * per_slot).reshape(num_slots, per_slot)
        self.ghost = Ghost(
            num_pages=num_slots * per_slot,
            page_size=PAGE,
            num_slots=num_slots,
            max_context=CONTEXT,
            window=window,
            num_window_pages=None if window is None else num_slots * per_slot,
            **options,
        )
        self.window = window
        self.length = [0] * num_slots
        self.output: list[list[int]] = [[] for _ in range(num_slots)]
        self.step = 1

    def admission(self, slot: int, sampling: SamplingParameters = GREEDY, history: Sequence[int] = ()) -> StepBatch:
        """A step without segments in which `slot` is taken; it has all of its pages. `history` is its prompt."""
        count = CONTEXT // PAGE
        return self.batch(
            [],
            admitted=(SlotAssignment(slot, sampling, len(history), int32s(history), 0),),
            page_slots=int32s([slot] * count),
            page_indices=int32s(range(count)),
            pages=int32s(self.pages[slot]),
            # Of another pool, so other numbers.
            window_pages=None if self.window is None else int32s(self.pages[slot][::-1]),
        )

    def batch(self, segments: list[tuple[int, list[int] | None, bool]], **changes: Any) -> StepBatch:
        """(slot, tokens or None for the one it drew last, whether to draw) for each segment."""
        batch = StepBatch(
            step=self.step,
            slots=int32s([slot for slot, _, _ in segments]),
            starts=int32s([self.length[slot] for slot, _, _ in segments]),
            lengths=int32s([1 if tokens is None else len(tokens) for _, tokens, _ in segments]),
            tokens=int32s([token for _, tokens, _ in segments for token in tokens or []]),
            chained=np.array([tokens is None for _, tokens, _ in segments], np.bool_),
            samples=np.array([samples for *_, samples in segments], np.bool_),
            page_slots=int32s([]),
            page_indices=int32s([]),
            pages=int32s([]),
            window_pages=None if self.window is None else int32s([]),
        )
        return msgspec.structs.replace(batch, **changes)

    def run(self, batch: StepBatch) -> StepResult:
        result = self.ghost.collect(self.ghost.launch(batch))
        self.step += 1
        for admission in batch.admitted:
            self.length[admission.slot] = 0
        for slot, length in zip(batch.slots.tolist(), batch.lengths.tolist(), strict=True):
            self.length[slot] += length
        for slot, token in zip(batch.slots[batch.samples].tolist(), result.tokens.tolist(), strict=True):
            self.output[slot].append(token)
        return result

    def prefill(self, slot: int, prompt: list[int], sampling: SamplingParameters = GREEDY) -> StepResult:
        self.run(self.admission(slot, sampling, prompt))
        return self.run(self.batch([(slot, prompt, True)]))

    def decode(self, *slots: int, **changes: Any) -> StepResult:
        return self.run(self.batch([(slot, None, True) for slot in slots], **changes))


def prompt_of(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(256), k=length)
