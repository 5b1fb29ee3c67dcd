"""Scores as a step records them: at the place of their token, and as many as its request asked for."""

from __future__ import annotations

from collections import defaultdict

from pawl.lifecycle.columns import int32s
from pawl.lifecycle.records import StepCommitted
from tests.loops.driver import Driver


def test_scores_stand_at_their_places_with_as_many_other_tokens_as_were_asked_for() -> None:
    driver = Driver()
    driver.submit([1, 2, 3, 4, 5], 2, prompt_logprobs=True, top_logprobs=2)
    driver.submit([6, 7], 3, top_logprobs=0)
    driver.submit([8, 9], 3)
    driver.run()
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for record in driver.records:
        if isinstance(record, StepCommitted) and record.scores is not None:
            columns = (record.scores.rows, record.scores.positions, record.scores.num_top)
            for row, position, width in zip(*(int32s(column).tolist() for column in columns), strict=True):
                found[driver.request_of[row]].append((position, width))
            assert len(record.scores.top) == len(record.scores.top_tokens) == sum(int32s(record.scores.num_top))
    assert {request: sorted(places) for request, places in found.items()} == {
        1: [(position, 2) for position in range(1, 7)],
        2: [(position, 0) for position in range(2, 5)],
    }
