"""The ghost for small steps is the other ghost: the same tokens, the same faults, whatever is done to its pages."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.ghost.memory import GhostFault
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.ghost.small import SmallMemory
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import SlotAssignment, StepBatch
from tests.gpu.ghost_rows import GREEDY, int32s

SLOTS, PAGES, SIZE, CONTEXT = 3, 12, 2, 12
SAMPLED = SamplingParameters(temperature=1.0, seed=5)


class Twins:
    """Two ghosts that are sent the same batches; pages are given out at random, and sometimes wrongly."""

    def __init__(self, seed: int, error_rate: float) -> None:
        self.draw = random.Random(seed)
        self.error_rate = error_rate
        self.large, self.small = (
            Ghost(num_pages=PAGES, page_size=SIZE, num_slots=SLOTS, max_context=CONTEXT, small=small)
            for small in (False, True)
        )
        self.length = [-1] * SLOTS
        """Positions computed; -1: nobody is there."""
        self.rows: list[list[int]] = [[] for _ in range(SLOTS)]
        self.step = 0

    def batch(self) -> StepBatch:
        """Some of the slots get a chunk or a decode, each with the pages it needs."""
        draw = self.draw
        changes: list[tuple[int, int, int]] = []
        self.step += 1
        admitted, segments = [], []
        for slot in sorted(draw.sample(range(SLOTS), draw.randrange(1, SLOTS + 1))):
            if self.length[slot] < 0 or self.length[slot] >= CONTEXT - 3:
                admitted.append(SlotAssignment(slot, draw.choice((GREEDY, SAMPLED)), 0, int32s([]), 0))
                self.length[slot], self.rows[slot] = self._adopted(slot, changes), self.rows[slot]
                fresh = True
            else:
                fresh = False
            chained = not fresh and draw.random() < 0.5
            length = 1 if chained else draw.randrange(1, 4)
            start = self.length[slot] + (draw.random() < self.error_rate)
            self._give_pages(slot, start + length, changes)
            segments.append((slot, start, length, chained))
            self.length[slot] = start + length
        tokens = [draw.choice((97, 98)) for _, _, length, chained in segments if not chained for _ in range(length)]
        return StepBatch(
            step=self.step,
            slots=int32s([slot for slot, *_ in segments]),
            starts=int32s([start for _, start, _, _ in segments]),
            lengths=int32s([length for _, _, length, _ in segments]),
            tokens=int32s(tokens),
            chained=np.array([chained for *_, chained in segments], np.bool_),
            samples=np.array([draw.random() >= self.error_rate for _ in segments], np.bool_),
            page_slots=int32s([slot for slot, _, _ in changes]),
            page_indices=int32s([index for _, index, _ in changes]),
            pages=int32s([page for _, _, page in changes]),
            window_pages=None,
            admitted=tuple(admitted),
        )

    def _adopted(self, slot: int, changes: list[tuple[int, int, int]]) -> int:
        """A newcomer begins with whole pages of somebody else, or with nothing."""
        other = self.draw.randrange(SLOTS)
        shared = self.draw.randrange(2) if other != slot and self.length[other] >= SIZE else 0
        self.rows[slot] = self.rows[other][:shared]
        changes += [(slot, index, page) for index, page in enumerate(self.rows[slot])]
        return shared * SIZE

    def _give_pages(self, slot: int, end: int, changes: list[tuple[int, int, int]]) -> None:
        taken = {page for row in self.rows for page in row}
        while len(self.rows[slot]) * SIZE < end:
            free = [page for page in range(PAGES) if page not in taken] or [0]
            wrong = self.draw.random() < self.error_rate
            page = self.draw.randrange(PAGES) if wrong else self.draw.choice(free)
            taken.add(page)
            if not wrong or self.draw.random() < 0.7:
                changes.append((slot, len(self.rows[slot]), page))
            self.rows[slot].append(page)


def said(ghost: Ghost, batch: StepBatch) -> list[int] | str:
    """The tokens, or the fault."""
    try:
        return list(ghost.launch(batch).tokens.tolist())
    except GhostFault as fault:
        return str(fault)


@given(seed=st.integers(0, 10_000), error_rate=st.sampled_from([0.0, 0.1]))
def test_both_say_the_same_to_the_first_fault(seed: int, error_rate: float) -> None:
    twins = Twins(seed, error_rate)
    for _ in range(12):
        batch = twins.batch()
        large, small = said(twins.large, batch), said(twins.small, batch)
        assert small == large
        if isinstance(large, str):
            assert len(twins.small.faults) == len(twins.large.faults) == 1
            return


def test_the_random_batches_show_every_kind_of_fault_and_long_runs_without() -> None:
    reasons, whole = set(), 0
    for seed in range(400):
        twins = Twins(seed, 0.1 if seed % 2 else 0.0)
        answers = [said(twins.small, twins.batch()) for _ in range(12)]
        fault = next((answer for answer in answers if isinstance(answer, str)), None)
        whole += fault is None
        if fault is not None:
            reasons.add("".join(letter for letter in fault.partition("position ")[2] if not letter.isdigit()))
    assert whole > 50
    assert {reason.strip(": ") for reason in reasons} >= {
        "there is no page to write to",
        "the page begins with another position",
        "what is read is not what the slot has computed",
        "the cached prefix is broken here",
        "the slot has computed  positions so far",
        "the slot has drawn no token to go on with",
    }


def test_after_a_reset_nothing_is_remembered() -> None:
    twins = Twins(1, 0.0)
    batches = [twins.batch() for _ in range(4)]
    first = [said(twins.small, batch) for batch in batches]
    twins.small.reset()
    assert [said(twins.small, batch) for batch in batches] == first
    assert isinstance(said(twins.small, batches[0]), list)


def test_a_small_ghost_has_neither_windows_nor_pages_to_copy() -> None:
    with pytest.raises(ValueError, match="window"):
        Ghost(num_pages=2, page_size=2, num_slots=1, max_context=4, window=2, num_window_pages=2, small=True)
    small = Ghost(num_pages=2, page_size=2, num_slots=1, max_context=4, small=True)
    assert isinstance(small.memory, SmallMemory)
    with pytest.raises(ValueError, match="no pages of bytes"):
        small.read_pages(int32s([0]))
