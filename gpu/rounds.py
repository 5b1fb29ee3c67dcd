"""Drawing for a step with runs: position after position, for as long as what is drawn is the draft; numpy only.

    inputs of a run     last  draft  draft  draft         the token drawn last, and three drafts
    drawn after each      a      b      c      -          a and b are the drafts that follow, c is not: three tokens
                          └ round 1, all segments that sample
                                 └ round 2, runs whose first draft is `a`
                                        └ round 3, runs whose second draft is `b` as well

A round draws as a step of its own would, so a run gives the very tokens that its request gets one by one: penalties,
grammars, noise by position, log-probabilities. Nothing is ever drawn after a draft that is wrong, so nothing that a
sampler or a matcher remembers has to be taken back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.ragged import with_chained
from pawl.lifecycle.step import Bools, Int32s, StepBatch, StepLogprobs, StepResult

Indices: TypeAlias = NDArray[np.intp]


class Round(NamedTuple):
    """What one row of each of `n` segments gives."""

    tokens: Int32s
    """[n]"""
    logprobs: StepLogprobs | None = None
    unusable: Bools | None = None
    refused: Bools | None = None
    """As in `StepResult`."""

    def at(self, rows: Indices | Bools) -> Round:
        """Some of its rows."""
        logprobs = self.logprobs
        if logprobs is not None:
            logprobs = StepLogprobs(logprobs.chosen[rows], logprobs.top_tokens[rows], logprobs.top[rows])
        marks = (None if marks is None else marks[rows] for marks in (self.unusable, self.refused))
        return Round(self.tokens[rows], logprobs, *marks)

    def bad(self) -> Bools:
        """Tokens that mean nothing, bool [n]."""
        bad = np.zeros(len(self.tokens), np.bool_)
        for marks in (self.unusable, self.refused):
            if marks is not None:
                bad |= marks
        return bad


class Rows(NamedTuple):
    """Where one round draws."""

    rows: Int32s
    """Rows of the flat batch, [n]."""
    slots: Int32s
    positions: Int32s
    """Where in its request each drawn token will stand."""


def has_runs(batch: StepBatch) -> bool:
    """Whether any decoding segment has drafts."""
    return 1 in (batch.chained & (batch.lengths > 1)).tobytes()


def rows_that_may_draw(batch: StepBatch, offsets: Int32s) -> Int32s:
    """Rows of the flat batch whose logits are wanted, rising: the last one of each segment that samples, and all of
    each run."""
    wanted = np.repeat(batch.chained, batch.lengths)
    wanted[(offsets[1:] - 1)[batch.samples]] = True
    return np.flatnonzero(wanted).astype(np.int32)


def look_up(chosen: Round, rows: Int32s, where: Rows) -> Round:
    """One round of tokens that are known already: `chosen`, for each of `rows` of the flat batch, [n], rising."""
    return chosen.at(np.searchsorted(rows, where.rows))


def draw_in_rounds(batch: StepBatch, offsets: Int32s, draw: Callable[[Rows], Round]) -> tuple[StepResult, Int32s]:
    """All rounds of a step, and how many tokens each segment drew, [s]; segment i has the rows from offsets[i] on. A
    token that means nothing ends its run before itself: where it is a later one of the run, the next step says so."""
    inputs = with_chained(batch, offsets, np.int32(0))
    last = offsets[1:] - 1
    segments = np.flatnonzero(batch.samples)
    rows = np.where(batch.chained, offsets[:-1], last)[segments]
    rounds: list[Round] = []
    owners = []
    while len(segments):
        positions = batch.starts[segments] + rows - offsets[segments] + 1
        drawn = draw(Rows(rows, batch.slots[segments], positions))
        bad = drawn.bad()
        kept = ~bad if rounds else np.ones_like(bad)
        rounds.append(drawn if kept.all() else drawn.at(kept))
        owners.append(segments[kept])
        going_on = np.flatnonzero(~bad & (rows < last[segments]))
        going_on = going_on[drawn.tokens[going_on] == inputs[rows[going_on] + 1]]
        segments, rows = segments[going_on], rows[going_on] + 1
    owner = np.concatenate(owners)
    order = np.argsort(owner, kind="stable")
    counts = np.bincount(owner, minlength=len(batch.slots)).astype(np.int32)
    result = StepResult(
        batch.step,
        np.concatenate([each.tokens for each in rounds])[order],
        _joined_scores(rounds, order),
        unusable=_joined_marks([(each.unusable, len(each.tokens)) for each in rounds], order),
        counts=counts[batch.samples],
        refused=_joined_marks([(each.refused, len(each.tokens)) for each in rounds], order),
    )
    return result, counts


def _joined_marks(parts: Sequence[tuple[Bools | None, int]], order: Indices) -> Bools | None:
    if all(marks is None for marks, _ in parts):
        return None
    joined: Bools = np.concatenate([np.zeros(n, np.bool_) if marks is None else marks for marks, n in parts])[order]
    return joined


def _joined_scores(rounds: Sequence[Round], order: Indices) -> StepLogprobs | None:
    """Scores of all rounds; those with fewer likeliest tokens than others have NaN and token 0 beyond them."""
    num_top = max((each.logprobs.top.shape[1] for each in rounds if each.logprobs is not None), default=-1)
    if num_top < 0:
        return None
    count = len(order)
    chosen, top = np.full(count, np.nan, np.float32), np.full((count, num_top), np.nan, np.float32)
    top_tokens = np.zeros((count, num_top), np.int32)
    at = 0
    for each in rounds:
        here = slice(at, at + len(each.tokens))
        at = here.stop
        if each.logprobs is not None:
            width = each.logprobs.top.shape[1]
            chosen[here] = each.logprobs.chosen
            top[here, :width], top_tokens[here, :width] = each.logprobs.top, each.logprobs.top_tokens
    return StepLogprobs(chosen[order], top_tokens[order], top[order])
