"""Limits of a loop, set while it runs: all or none, and steps that wait."""

from __future__ import annotations

import pytest

from pawl.gpu.ghost.oracle import expected
from pawl.loops.intake import Outcome
from pawl.loops.orders.limits import SetState, SlowDown
from pawl.loops.snapshot import restore, snapshot_of
from tests.loops.driver import CELLS, Driver

PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9]
COUNT = 4


def told(driver: Driver, order: SetState | SlowDown) -> Outcome:
    driver.intake.deliver(order, driver.now, 9)
    return driver.outcome_of.pop(9)


def launches(driver: Driver, until: float, tick_s: float = 0.25) -> list[float]:
    """Turn every `tick_s` and answer each step at once; the times of launches."""
    times: list[float] = []
    while driver.now < until:
        driver.intake.turn(driver.now)
        times += [driver.now] * len(driver.launched)
        while driver.launched:
            driver.loop.executed(driver.ghost.launch(driver.launched.popleft().batch), driver.now)
        driver.now += tick_s
    return times


@pytest.mark.parametrize(
    "wrong", [{"max_running": 9}, {"prefill_chunk": 3}, {"prefill_chunk": 17}, {"max_queued": 65}], ids=str
)
def test_limits_are_set_all_or_none(wrong: dict[str, int]) -> None:
    driver = Driver()
    before = driver.loop.limits.in_force()
    right = {"max_running": 2, "prefill_chunk": 8, "max_queued": 3}
    outcome = told(driver, SetState(**{**right, **wrong}))
    assert not outcome.ok
    assert next(iter(wrong)) in outcome.message
    assert driver.loop.limits.in_force() == before == outcome.facts["server_args"]
    assert told(driver, SetState(**right)).facts == {"updated": True, "server_args": right}
    assert driver.loop.limits.in_force() == right


def test_an_order_that_sets_nothing_changes_nothing_and_says_what_is_in_force() -> None:
    driver = Driver()
    assert told(driver, SetState()).facts["server_args"] == {"max_running": 8, "prefill_chunk": 16, "max_queued": 64}


@pytest.mark.parametrize("max_running", range(1, 6))
def test_of_requests_that_come_together_no_more_are_admitted_than_may_run(max_running: int) -> None:
    driver = Driver(pacing="lockstep", prefill_chunk=64)
    told(driver, SetState(max_running=max_running))
    for prompt in range(5):
        driver.submit([prompt], COUNT)
    driver.step()
    assert driver.loop.queues.num_running == max_running
    assert driver.loop.memory.slots.free == 8 - max_running


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_limits_that_are_lowered_in_the_middle_hold_from_the_next_step_and_change_no_token(
    pacing: str, mixed: bool
) -> None:
    driver = Driver(pacing=pacing, mixed=mixed)
    requests = [driver.submit([prompt, *PROMPT], COUNT) for prompt in range(4)]
    driver.step()
    assert told(driver, SetState(max_running=1, prefill_chunk=4)).ok
    before = {scheduled.step for scheduled in driver.launched}
    late = driver.submit([5, *PROMPT], COUNT)
    while driver.step():
        waits = late not in driver.ending_of and not driver.output_of[late]
        if waits and driver.loop.queues.num_running > 1:
            assert driver.loop.queues.num_waiting
        later = [scheduled for scheduled in driver.launched if scheduled.step not in before]
        assert all(sum(segment.length for segment in scheduled.prefills) <= 4 for scheduled in later)
    for prompt, request in zip((0, 1, 2, 3, 5), (*requests, late), strict=True):
        assert driver.output_of[request] == expected([prompt, *PROMPT], COUNT)


def test_a_shorter_queue_refuses_who_comes_and_keeps_who_waits() -> None:
    driver = Driver()
    waiting = [driver.submit(PROMPT, COUNT) for _ in range(3)]
    assert told(driver, SetState(max_queued=2)).ok
    assert driver.cause(driver.submit(PROMPT, COUNT)) == "overloaded"
    driver.run()
    assert all(len(driver.output_of[request]) == COUNT for request in waiting)


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_every_step_waits_while_steps_are_slowed_down_and_none_afterwards(pacing: str, mixed: bool) -> None:
    driver = Driver(pacing=pacing, mixed=mixed)
    told(driver, SlowDown(2.0))
    driver.now = 10.0
    request = driver.submit(PROMPT, COUNT)
    assert launches(driver, 15.0) == [12.0, 14.0]
    assert told(driver, SlowDown(None)).facts == {"forward_sleep_time": None}
    assert launches(driver, 16.0) == ([15.0, 15.0] if pacing == "overlap" else [15.0, 15.25])
    assert driver.output_of[request] == expected(PROMPT, COUNT)


def test_a_delay_of_nothing_is_none_and_a_restored_loop_waits_as_it_did() -> None:
    driver, other = Driver(), Driver()
    assert told(driver, SlowDown(0.0)).facts == {"forward_sleep_time": None}
    driver.now = 3.0
    driver.submit(PROMPT, COUNT)
    told(driver, SlowDown(2.0))
    told(driver, SetState(max_running=3))
    restore(other.intake, snapshot_of(driver.intake))
    assert other.loop.limits.due_at == driver.loop.limits.due_at == 5.0
    assert other.loop.limits.in_force() == driver.loop.limits.in_force()


def test_the_delay_of_steps_begins_anew_with_the_result_of_one() -> None:
    driver = Driver(pacing="lockstep")
    told(driver, SlowDown(2.0))
    driver.submit(PROMPT, COUNT)
    driver.intake.turn(2.0)
    driver.loop.executed(driver.ghost.launch(driver.launched.popleft().batch), 3.0)
    driver.intake.turn(4.5)
    assert not driver.launched
    driver.intake.turn(5.0)
    assert len(driver.launched) == 1


def test_a_limit_that_was_lowered_can_be_what_it_was_at_the_start_again() -> None:
    driver = Driver()
    before = driver.loop.limits.in_force()
    lower = {"max_running": 1, "prefill_chunk": 4, "max_queued": 1}
    assert told(driver, SetState(**lower)).ok
    assert told(driver, SetState(**before)).ok
    assert driver.loop.limits.in_force() == before
