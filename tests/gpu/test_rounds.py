"""Drafts change nothing: on real kernels a request with runs gets the bits that it gets alone and one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pawl.gpu.rounds import Round, Rows, draw_in_rounds, rows_that_may_draw
from pawl.lifecycle.step import Bools, Int32s, StepBatch, StepLogprobs
from pawl.loops.planner import UnifiedPlanner
from pawl.loops.speculation import Drafter, Drafts, SpeculationConfig
from pawl.memory.arrays import Indices
from tests.gpu.serving import Answered, Asked, Serving
from tests.gpu.test_deterministic import ODD, alone, smollm2, tiny, workload
from tests.loops.driver import CELLS

WIDTH = 5
SPECULATION = SpeculationConfig(
    num_speculative_tokens=WIDTH, prompt_lookup_min=1, prompt_lookup_max=3, max_positions=48
)


class Foretold(Drafter):
    """Drafts of what requests are known to get, right up to a place that chance has chosen."""

    texts: Sequence[Sequence[int]] = ()

    def draft(self, rows: Indices, starts: Int32s) -> Drafts | None:
        self.table.draft_length[rows], self.table.draft_from[rows] = WIDTH, 0
        return super().draft(rows, starts)

    def _continuation(self, text: Int32s, count: int) -> Int32s:
        known = text.tolist()
        whole = next(each for each in self.texts if list(each[: len(known)]) == known)
        tokens = np.array([*whole[len(known) :], *[0] * count][:count], np.int32)
        wrong = (len(known) * 7 + sum(known)) % (count + 1)
        tokens[wrong:] = (tokens[wrong:] + 1) % ODD.vocab_size
        return tokens


def foretell(serving: Serving, everyone: Sequence[Asked], answers: Sequence[Answered]) -> None:
    planner = serving.loop.planner
    assert isinstance(planner, UnifiedPlanner)
    assert planner.drafter is not None
    planner.drafter = serving.loop.drafter = made = Foretold(serving.loop.table, SPECULATION, most=planner.drafter.most)
    made.texts = [(*one.prompt, *answer.tokens) for one, answer in zip(everyone, answers, strict=True)]


@pytest.mark.parametrize("model", ["dense", "switched", "experts"])
@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("pacing", "mixed"), [CELLS[0], CELLS[3]])
def test_foretold_requests_get_the_bits_that_they_get_alone(model: str, dtype: str, pacing: str, mixed: bool) -> None:
    everyone = workload(ODD.vocab_size, 5, 6, longest=40, num_output=24)
    wanted = [alone(tiny(model, dtype, 16), one) for one in everyone]
    for page_size, num_pages in ((1, 400), (16, 9)):
        worker = tiny(model, dtype, page_size)
        serving = Serving(
            worker,
            pacing=pacing,
            mixed=mixed,
            num_pages=num_pages,
            prefill_chunk=48,
            lookahead=1,
            speculation=SPECULATION,
        )
        foretell(serving, everyone, wanted)
        assert serving.answers(*everyone) == wanted
        counters = serving.loop.counters
        assert 0 < counters.accepted_tokens < counters.draft_tokens


def test_smollm2_with_drafts_from_its_own_text_says_the_same_bits() -> None:
    worker = smollm2("bf16")
    prompt = tuple(np.random.default_rng(7).integers(1000, 40_000, 12).tolist()) * 3
    ways: Sequence[dict[str, Any]] = ({"num_top": None}, {}, {"temperature": 0.5}, {"penalty": 0.1})
    everyone = [Asked(prompt, num_output=24, seed=3, **way) for way in ways]
    wanted = [alone(worker, one) for one in everyone]
    serving = Serving(worker, speculation=SPECULATION)
    assert serving.answers(*everyone) == wanted
    assert serving.loop.counters.accepted_tokens > 8
    assert serving.loop.counters.steps < 24


# ---- rounds by themselves ----


def batch_of(lengths: Sequence[int], chained: Sequence[bool], tokens: Sequence[int]) -> StepBatch:
    count, none = len(lengths), np.zeros(0, np.int32)
    return StepBatch(
        step=1,
        slots=np.arange(count, dtype=np.int32),
        starts=np.full(count, 10, np.int32),
        lengths=np.array(lengths, np.int32),
        tokens=np.array(tokens, np.int32),
        chained=np.array(chained),
        samples=np.ones(count, np.bool_),
        page_slots=none,
        page_indices=none,
        pages=none,
    )


def offsets_of(batch: StepBatch) -> Int32s:
    return np.concatenate(([0], np.cumsum(batch.lengths))).astype(np.int32)


def test_a_round_draws_what_is_left_after_the_drafts_that_were_right() -> None:
    # A run with three drafts of which two are right, a chunk of a prompt, a run whose draft is wrong, a single token.
    batch = batch_of([4, 3, 2, 1], [True, False, True, True], [21, 22, 99, 1, 2, 3, 98])
    offsets = offsets_of(batch)
    assert rows_that_may_draw(batch, offsets).tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    says = {0: 21, 1: 22, 2: 23, 6: 31, 7: 41, 9: 51}
    seen: list[tuple[list[int], list[int]]] = []

    def draw(where: Rows) -> Round:
        seen.append((where.rows.tolist(), where.positions.tolist()))
        return Round(np.array([says[row] for row in where.rows.tolist()], np.int32))

    result, counts = draw_in_rounds(batch, offsets, draw)
    assert seen == [([0, 6, 7, 9], [11, 13, 11, 11]), ([1], [12]), ([2], [13])]
    assert result.tokens.tolist() == [21, 22, 23, 31, 41, 51]
    assert counts.tolist() == [3, 1, 1, 1]
    assert result.last.tolist() == [23, 31, 41, 51]
    assert result.unusable is None
    assert result.refused is None


@pytest.mark.parametrize("kind", ["unusable", "refused"])
def test_a_token_that_means_nothing_ends_a_run_before_itself_unless_it_is_the_first(kind: str) -> None:
    batch = batch_of([3, 3], [True, True], [21, 22, 21, 22])

    def draw(where: Rows) -> Round:
        tokens = np.where(where.positions == 11, 21, 22).astype(np.int32)
        marks: Bools = (where.rows == 1) | (where.rows == 3)
        return Round(tokens, **{kind: marks})

    result, counts = draw_in_rounds(batch, offsets_of(batch), draw)
    assert counts.tolist() == [1, 1]
    assert result.tokens.tolist() == [21, 21]
    assert getattr(result, kind).tolist() == [False, True]


def test_scores_of_rounds_stand_by_their_tokens() -> None:
    batch = batch_of([2, 1], [True, True], [21])

    def draw(where: Rows) -> Round:
        if len(where.rows) == 1:
            return Round(np.array([7], np.int32))
        row = where.rows.astype(np.float32)
        return Round(np.array([21, 5], np.int32), StepLogprobs(row, where.rows[:, None], row[:, None]))

    result, _ = draw_in_rounds(batch, offsets_of(batch), draw)
    assert result.tokens.tolist() == [21, 7, 5]
    assert result.logprobs is not None
    np.testing.assert_array_equal(result.logprobs.chosen, np.array([0, np.nan, 2], np.float32))
    assert result.logprobs.top_tokens[:, 0].tolist() == [0, 0, 2]
