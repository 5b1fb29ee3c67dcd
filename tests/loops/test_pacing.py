"""Micro-batches: who is in which step of a pipeline."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.records import StepPlanned, int32s
from pawl.loops.pacing import PACINGS
from tests.loops.driver import Driver
from tests.loops.test_loop import prompts


@given(stages=st.integers(1, 6), count=st.integers(1, 30), steps=st.integers(1, 40))
def test_every_decoding_request_is_in_one_of_as_many_steps_as_there_are_stages(
    stages: int, count: int, steps: int
) -> None:
    pacing, decoding = PACINGS["pipeline"](stages), np.arange(count)
    batches: list[np.ndarray] = []
    for _ in range(steps):
        batch = pacing.micro_batch(decoding, batches[-stages:])
        decoding = np.concatenate((decoding[~np.isin(decoding, batch)], batch))
        batches.append(batch)
        newest = batches[-stages:]
        turns = Counter(np.concatenate(newest).tolist())
        assert set(turns.values()) <= {1}
        if len(newest) == stages:
            assert len(turns) == count
            assert max(map(len, newest)) - min(map(len, newest)) <= 1


def test_who_comes_late_takes_no_share_of_others() -> None:
    pacing = PACINGS["pipeline"](3)
    running = [np.array([0]), np.array([1]), np.array([2])]
    decoding = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert pacing.micro_batch(decoding, running).tolist() == [0, 3, 4]


def test_no_request_waits_while_another_has_two_turns() -> None:
    driver = Driver(pacing="pipeline", num_pages=200)
    requests = {driver.submit(prompt, 12): prompt for prompt in prompts(7, 9)}
    for _ in range(8):
        driver.step()
    before = len(driver.records)
    for _ in range(3 * 5):
        driver.step()
    planned = [record for record in driver.records[before:] if isinstance(record, StepPlanned)]
    turns = Counter(row for record in planned for row in int32s(record.rows).tolist())
    assert len(turns) == 7
    assert max(turns.values()) - min(turns.values()) <= 1
    driver.run()
    assert all(driver.output_of[request] == expected(prompt, 12) for request, prompt in requests.items())


def test_as_many_steps_are_in_flight_as_there_are_stages_and_one_more() -> None:
    driver = Driver(pacing="pipeline", num_pages=200)
    for prompt in prompts(8, 9):
        driver.submit(prompt, 40)
    for _ in range(20):
        driver.step()
    driver.intake.turn(driver.now)
    assert len(driver.loop.in_flight) == 4
