"""What the detokenizer is told of admissions: the first that stays, and when it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pawl.actors.step_report import StepReport, _told
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.step import StepLogprobs, StepResult


class Table:
    def __init__(self, *infos: RequestInfo) -> None:
        self._infos = infos

    def info(self, row: int) -> RequestInfo:
        return self._infos[row]


def requested(number: int, submitted: float) -> RequestInfo:
    return RequestInfo(number, f"r{number}", SamplingParameters(), "", submitted)


def test_an_admission_is_told_with_the_first_time_and_one_after_a_retraction_is_not() -> None:
    first, again = requested(1, 0.5), requested(2, 0.25)
    again.num_retractions = 1
    first.num_cached = 3
    table: Any = Table(first, again)
    report = StepReport()
    report.launched(SimpleNamespace(admitted=(0, 1)), table, 1.5)  # type: ignore[arg-type]
    report.launched(SimpleNamespace(admitted=(0,)), table, 2.5)  # type: ignore[arg-type]
    told = [(each.row, each.cached_tokens, each.timing.submitted, each.timing.admitted) for each in report._admitted]
    assert told == [(0, 3, 0.5, 1.5), (0, 3, 0.5, 1.5)]
    assert (first.admitted, again.admitted) == (1.5, None)


def test_tokens_of_a_step_that_is_not_committed_after_all_are_not_told() -> None:
    report, steps = StepReport(), [SimpleNamespace(), SimpleNamespace()]
    rows = np.array([4, 5])
    report.output(rows, rows.astype(np.int32), steps[0], SimpleNamespace())  # type: ignore[arg-type]
    report.withdraw([steps[1]])  # type: ignore[list-item]
    assert report._rows.tolist() == [4, 5]
    report.withdraw(steps)  # type: ignore[arg-type]
    assert (report._rows.tolist(), report._tokens.tolist(), report._scheduled, report._result) == ([], [], None, None)


@pytest.mark.parametrize(("fresh", "several"), [(True, True), (False, True), (False, False), (True, False)])
def test_scores_are_told_of_the_tokens_that_were_given_out(fresh: bool, several: bool) -> None:
    """Where a step may draw several tokens of a request, its last ones may not be wanted though nothing is stale."""
    given_out = np.array([True, True, True] if fresh and not several else [True, False, True])
    scores = StepLogprobs(
        np.array([1.0, 2.0, 3.0], np.float32), np.zeros((3, 0), np.int32), np.zeros((3, 0), np.float32)
    )
    result = StepResult(1, np.arange(3, dtype=np.int32), scores, counts=np.array([2, 1]) if several else None)
    loop: Any = SimpleNamespace(fresh_at_commit=np.array([fresh, True]), wanted_tokens=lambda _: given_out)
    scheduled: Any = SimpleNamespace(row_of_slot=lambda _: {})
    told, _, _ = _told(loop, scheduled, result)
    assert told.chosen.tolist() == scores.chosen[given_out].tolist()
