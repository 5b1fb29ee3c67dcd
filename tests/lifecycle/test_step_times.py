"""What steps take, learned on machines of given costs, and what fits into one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.lifecycle.step_times import MEASURED_EVERY, MOST_SHARE, SHARE, StepTimes

CHUNK, PAGE = 128, 16
MAX_STEP_S = 0.05
Cost = Callable[[int, int], float]
"""(requests that decode, prompt tokens) -> seconds of a step."""


class Machine:
    """Runs steps one after the other, each planned when the one before is launched (`depth` 1) or has come back."""

    def __init__(self, cost: Cost, depth: int = 0, max_step_s: float = MAX_STEP_S) -> None:
        self.cost, self.depth, self.max_step_s = cost, depth, max_step_s
        self.times, self.now = StepTimes(), 100.0
        self.in_flight: list[tuple[int, int]] = []

    def step(self, decoding: int, waiting: int = 0, queued: int = 0) -> tuple[int, float]:
        """One more step, with as many of the `waiting` prompt tokens as it may have while `queued` requests have not
        begun. Prompt tokens and seconds of the step that comes back."""
        prompts = self.times.prompt_tokens(decoding, queued, self.max_step_s, CHUNK, PAGE)
        prompts = min(prompts - prompts % PAGE, waiting)
        self.times.launched(decoding, prompts, self.now)
        self.in_flight.append((decoding, prompts))
        if len(self.in_flight) <= self.depth:
            return 0, 0.0
        oldest = self.in_flight.pop(0)
        seconds = self.cost(*oldest)
        self.now += seconds
        self.times.resolved(self.now)
        return oldest[1], seconds


def bound(machine: Machine, decoding: int, queued: int = 0) -> float:
    return max(machine.max_step_s, (1 + min(SHARE + queued / 4, MOST_SHARE)) * machine.cost(decoding, 0))


milliseconds = st.floats(min_value=0.01, max_value=1000.0).map(lambda number: number / 1000)


@given(
    base=milliseconds,
    of_row=milliseconds,
    of_token=milliseconds,
    decoding=st.integers(1, 200),
    queued=st.integers(0, 12),
    depth=st.integers(0, 1),
)
def test_prompts_make_a_step_no_longer_than_its_bound_on_any_machine(
    base: float, of_row: float, of_token: float, decoding: int, queued: int, depth: int
) -> None:
    machine = Machine(lambda rows, prompts: base + of_row * rows + of_token * prompts, depth)
    for _ in range(4):
        machine.step(decoding)
    machine.step(decoding, CHUNK)
    for _ in range(depth):  # which were planned before anything was known of prompts
        machine.step(decoding)
    for _ in range(3 * MEASURED_EVERY):
        prompts, seconds = machine.step(decoding, CHUNK, queued)
        assert seconds <= bound(machine, decoding, queued) * 1.01 or prompts <= PAGE


def test_prompts_have_more_of_a_step_the_more_wait_to_begin_and_three_quarters_at_the_most() -> None:
    machine = Machine(lambda rows, prompts: 1 / 16 + prompts / 1024)
    for queued in (0, 0, 0):
        machine.step(32, CHUNK, queued)
    shares = [machine.times.prompt_tokens(32, queued, MAX_STEP_S, 1000, 1) for queued in (0, 1, 2, 4, 9, 10, 1000)]
    assert shares == [48, 64, 80, 112, 192, 192, 192]


def test_a_long_prompt_whose_tokens_become_dearer_takes_its_share_and_no_more() -> None:
    done = 0

    def cost(rows: int, prompts: int) -> float:
        return 0.004 + 0.001 * rows + prompts * (0.0006 + 2e-7 * done)

    machine = Machine(cost)
    for _ in range(8):
        machine.step(32)
    gaps = []
    while done < 8192:
        prompts, seconds = machine.step(32, 8192 - done)
        done += prompts
        gaps.append(seconds)
    assert max(gaps[4:]) <= 2 * cost(32, 0)
    assert len(gaps) < 8192 / PAGE  # more than a page on average


def test_more_requests_that_decode_are_given_time_before_they_were_measured_alone() -> None:
    machine = Machine(lambda rows, prompts: 0.004 + 0.001 * rows + 0.0006 * prompts)
    machine.step(0, CHUNK)
    machine.step(1)
    for rows in range(2, 65):
        prompts, _ = machine.step(rows, CHUNK)
    assert 0.5 * machine.cost(64, 0) < machine.times.alone_seconds(64) < 1.5 * machine.cost(64, 0)
    assert prompts >= 2 * PAGE


def test_fewer_requests_that_decode_are_not_thought_to_take_as_long_as_many() -> None:
    machine = Machine(lambda rows, prompts: 0.001 * rows + 0.0006 * prompts)
    machine.step(0, CHUNK)
    for _ in range(8):
        machine.step(64)
    assert machine.times.alone_seconds(64) == pytest.approx(0.064)
    assert machine.times.alone_seconds(8) == pytest.approx(0.064 - 56 * 0.0006)
    assert machine.times.alone_seconds(0) >= 0


def test_a_step_in_65_has_no_prompts_and_shows_what_it_takes_without() -> None:
    machine = Machine(lambda rows, prompts: 0.010 + 0.001 * prompts, depth=1)
    steps = [machine.step(4, CHUNK)[0] > 0 for _ in range(4 * (MEASURED_EVERY + 1))]
    without = [number for number, prompts in enumerate(steps) if not prompts][1:]  # the first has not come back
    assert without == [1 + number * (MEASURED_EVERY + 2) for number in range(len(without))]
    assert machine.times.alone_s == pytest.approx(0.010)


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.001, 0.5, 3600.0]), min_size=1, max_size=200))
def test_whatever_steps_take_prompts_go_on(seconds: list[float]) -> None:
    durations = iter(seconds)
    machine = Machine(lambda rows, prompts: next(durations))
    counts = [machine.step(2, CHUNK)[0] for _ in seconds]
    assert all(PAGE <= count <= CHUNK for count in counts[1:MEASURED_EVERY])


def test_beside_nobody_and_without_a_bound_a_step_has_the_whole_chunk() -> None:
    times = StepTimes()
    assert times.prompt_tokens(0, 5, 1e-9, CHUNK, PAGE) == CHUNK
    assert times.prompt_tokens(8, 5, None, CHUNK, PAGE) == CHUNK


def test_a_step_that_waited_for_the_one_before_is_not_charged_for_it() -> None:
    times = StepTimes()
    times.launched(1, 0, 1.0)
    times.launched(1, 0, 1.0)
    times.resolved(2.0)
    times.resolved(3.0)
    assert (times.alone, times.alone_s) == (1, 1.0)


def test_after_a_lost_step_none_is_in_flight_and_what_was_learned_stays_unless_it_failed_half_way() -> None:
    times = StepTimes()
    for at in (0.0, 1.0):
        times.launched(3, 0, at)
    times.resolved(1.0)
    times.lost()
    assert (times.in_flight, times.alone) == ([], 3)
    times.launched(3, 0, 2.0)
    times.forget()
    assert (len(times.in_flight), times.alone, times.measuring) == (1, 0, False)
    times.resolved(2.5)
    assert times.alone_s == 0.5
