"""What goes into a step that may only take so long, and whose prompt goes first."""

from __future__ import annotations

import pytest

from pawl.loops.batch import ScheduledBatch
from tests.loops.driver import Driver

LONG = [number % 7 for number in range(100)]


class Timed(Driver):
    """Steps take time, and every one is kept."""

    token_s = 0.01

    def __init__(self, **settings: object) -> None:
        self.steps: list[tuple[int, int]] = []
        """Requests that decode, and prompt tokens."""
        super().__init__(max_context=256, num_pages=256, prefill_chunk=32, pacing="lockstep", **settings)

    def launch(self, scheduled: ScheduledBatch) -> None:
        super().launch(scheduled)
        self.steps.append((len(scheduled.decoding_rows), scheduled.num_prompt_tokens))


def beside_two_that_decode(**settings: object) -> Timed:
    driver = Timed(**settings)
    for _ in range(2):
        driver.submit([1, 2, 3], 60)
    for _ in range(4):
        driver.step()
    driver.steps.clear()
    driver.submit(LONG, 4)
    driver.submit(LONG[::-1], 4)
    return driver


@pytest.mark.parametrize("mixed", [False, True])
def test_prompts_beside_requests_that_decode_are_cut_to_the_time_that_a_step_has(mixed: bool) -> None:
    driver = beside_two_that_decode(max_step_s=0.15, mixed=mixed)
    driver.run()
    beside = [prompts for decoding, prompts in driver.steps if decoding and prompts]
    # 0.02 s are theirs that decode, which leaves 13 tokens, and pages have 4.
    assert (max(beside, default=0), sum(beside)) == ((12, 200) if mixed else (0, 0))
    assert (driver.steps[0] == (0, 32)) is not mixed


def test_those_who_wait_make_steps_longer_until_they_begin() -> None:
    driver = Timed(max_step_s=1e-6)
    for _ in range(4):
        driver.submit([1, 2, 3], 60)
    for _ in range(4):
        driver.step()
    driver.steps.clear()
    for count in range(9):
        driver.submit([100 + count, *LONG[:15]], 1)
    driver.run()
    beside = [prompts for _, prompts in driver.steps if prompts]
    assert (beside[0], beside[-1], sum(beside)) == (12, 4, 9 * 16)


def test_a_step_without_time_goes_on_with_a_prompt_by_a_page() -> None:
    driver = beside_two_that_decode(max_step_s=1e-6)
    driver.run()
    assert {prompts for decoding, prompts in driver.steps if decoding} == {4, 0}


def test_nobody_waits_for_tokens_and_a_prompt_has_the_whole_chunk() -> None:
    driver = Timed(max_step_s=1e-6)
    driver.submit(LONG, 1)
    driver.run()
    assert driver.steps == [(0, 32), (0, 32), (0, 32), (0, 4)]


def test_without_a_bound_prompts_have_the_whole_chunk_beside_anybody() -> None:
    driver = beside_two_that_decode()
    driver.run()
    assert driver.steps[0] == (2, 32)


class Turns(Driver):
    """Keeps the requests whose prompts are computed in each step, in order."""

    def __init__(self, **settings: object) -> None:
        self.turns: list[list[int]] = []
        super().__init__(max_context=256, num_pages=256, prefill_chunk=8, pacing="lockstep", **settings)

    def launch(self, scheduled: ScheduledBatch) -> None:
        super().launch(scheduled)
        self.turns.append([self.request_of[segment.row] for segment in scheduled.prefills])


def prompt(number: int, count: int) -> list[int]:
    return [10 + number, *([0] * (count - 1))]


def test_a_short_prompt_goes_before_a_long_one_that_has_begun() -> None:
    driver = Turns()
    long = driver.submit(prompt(0, 100), 1)
    driver.step()
    short = driver.submit(prompt(1, 7), 1)
    driver.step()
    assert driver.turns == [[long], [short]]


def test_what_a_short_prompt_leaves_of_a_step_is_the_long_ones() -> None:
    driver = Turns()
    long = driver.submit(prompt(0, 100), 1)
    driver.step()
    short = driver.submit(prompt(1, 3), 1)
    driver.step()
    assert driver.turns == [[long], [short, long]]


def test_equal_prompts_are_computed_one_after_the_other() -> None:
    driver = Turns()
    requests = [driver.submit(prompt(number, 24), 1) for number in range(4)]
    driver.run()
    assert driver.turns == [[request] for request in requests for _ in range(3)]


def test_a_third_of_the_steps_is_the_oldest_prompts_however_many_short_ones_come() -> None:
    driver = Turns()
    long = driver.submit(prompt(0, 100), 1)
    driver.step()
    while long not in driver.ending_of:
        driver.submit(prompt(len(driver.turns), 8), 1)
        driver.step()
    assert [turn[0] == long for turn in driver.turns[:10]] == [True, *[False, False, True] * 3]
    assert len(driver.turns) <= 3 * (1 + 100 // 8)


def test_what_is_left_counts_and_not_what_is_cached() -> None:
    driver = Turns()
    driver.submit(prompt(1, 40), 1)
    driver.run()
    long = driver.submit(prompt(0, 30), 1)
    driver.step()
    again = driver.submit([*prompt(1, 40), 5, 5], 1)
    driver.step()
    assert driver.turns[-2:] == [[long], [again, long]]


@pytest.mark.parametrize(("policy", "first"), [("priority", "long"), ("fcfs", "short")])
def test_a_prompt_of_lower_priority_stays_behind_where_that_decides(policy: str, first: str) -> None:
    driver = Turns(policy=policy)
    requests = {"long": driver.submit(prompt(0, 100), 1, priority=1)}
    driver.step()
    requests["short"] = driver.submit(prompt(1, 8), 1)
    driver.step()
    assert driver.turns[-1] == [requests[first]]


def test_who_has_priority_goes_before_a_prompt_that_has_begun_however_long() -> None:
    driver = Turns(policy="priority")
    driver.submit(prompt(0, 20), 1)
    driver.step()
    urgent = driver.submit(prompt(1, 100), 1, priority=1)
    driver.step()
    assert driver.turns[-1] == [urgent]
