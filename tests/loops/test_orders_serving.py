"""Pausing a loop and letting it go on: who keeps memory, who waits, and that nobody gets anything else for it."""

from __future__ import annotations

import pytest

from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.machines.serving import SERVING, Serving, ServingEvent
from pawl.lifecycle.states import Cause
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.requests import Abort, CheckDeadlines, EndAll
from pawl.loops.orders.serving import Continue, Pause
from pawl.loops.snapshot import restore, snapshot_of
from tests.loops.driver import CELLS, Driver

PROMPT = [1, 2, 3, 4, 5, 6, 7]
COUNT = 6


def paused(driver: Driver, *, retract: bool = False) -> None:
    """Pause, and let what is in flight come back."""
    driver.intake.deliver(Pause(retract), driver.now, 1)
    while driver.launched:
        driver.step()


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
@pytest.mark.parametrize("retract", [True, False])
@pytest.mark.parametrize("steps", range(6))
def test_a_request_that_was_paused_at_any_step_gets_the_tokens_of_one_that_was_not(
    pacing: str, mixed: bool, retract: bool, steps: int
) -> None:
    driver = Driver(pacing=pacing, mixed=mixed, prefill_chunk=4)
    requests = [driver.submit(PROMPT, COUNT), driver.submit(PROMPT[::-1], COUNT)]
    for _ in range(steps):
        driver.step()
    paused(driver, retract=retract)
    driver.intake.deliver(Continue(), driver.now)
    driver.run()
    assert [driver.output_of[request] for request in requests] == [
        expected(prompt, COUNT) for prompt in (PROMPT, PROMPT[::-1])
    ]


def test_while_it_is_paused_a_loop_plans_nothing_and_who_arrives_waits() -> None:
    driver = Driver()
    paused(driver)
    request = driver.submit(PROMPT, COUNT)
    driver.intake.turn(driver.now)
    assert (len(driver.loop.in_flight), driver.loop.queues.num_waiting) == (0, 1)
    driver.intake.deliver(Continue(), driver.now)
    driver.run()
    assert driver.output_of[request] == expected(PROMPT, COUNT)


def test_who_runs_keeps_memory_in_place_and_gives_it_back_when_retracted() -> None:
    driver = Driver()
    driver.submit(PROMPT, COUNT)
    driver.step()
    paused(driver)
    assert (driver.loop.queues.num_running, driver.loop.at_rest) == (1, False)
    paused(driver, retract=True)
    assert (driver.loop.queues.num_running, driver.loop.at_rest) == (0, True)
    assert driver.loop.memory.pages.owned == 0


@pytest.mark.parametrize("timeout_s", [0.0, 9.0])
def test_a_flush_after_a_pause_that_retracts_succeeds_at_once_whether_it_may_wait_or_not(timeout_s: float) -> None:
    driver = Driver()
    request = driver.submit(PROMPT, COUNT)
    driver.step()
    paused(driver, retract=True)
    driver.submit(PROMPT, COUNT)
    driver.intake.deliver(FlushCache(timeout_s), driver.now, 7)
    assert driver.outcome_of[7].ok
    assert driver.loop.memory.cache.statistics()["pages"] == 0
    driver.intake.deliver(Continue(), driver.now)
    driver.run()
    assert driver.output_of[request] == expected(PROMPT, COUNT)


@pytest.mark.parametrize("timeout_s", [0.0, 9.0])
def test_a_flush_while_somebody_has_kept_its_memory_is_not_done(timeout_s: float) -> None:
    driver = Driver()
    driver.submit(PROMPT, COUNT)
    driver.step()
    paused(driver)
    driver.intake.deliver(FlushCache(timeout_s), driver.now, 7)
    driver.intake.turn(driver.now)
    assert 7 not in driver.outcome_of or not driver.outcome_of[7].ok


def test_a_flush_that_waits_is_done_when_a_pause_has_retracted_everybody() -> None:
    driver = Driver()
    driver.submit(PROMPT, COUNT)
    driver.step()
    driver.intake.deliver(FlushCache(9.0), driver.now, 7)
    paused(driver, retract=True)
    driver.intake.turn(driver.now)
    assert driver.outcome_of[7].ok


def test_one_order_to_continue_ends_however_many_pauses_and_one_too_many_does_nothing() -> None:
    driver = Driver()
    driver.intake.deliver(Continue(), driver.now)
    request = driver.submit(PROMPT, COUNT)
    for retract in (False, True, False):
        paused(driver, retract=retract)
    driver.intake.deliver(Continue(), driver.now)
    driver.intake.deliver(Continue(), driver.now)
    driver.run()
    assert driver.output_of[request] == expected(PROMPT, COUNT)


def test_requests_end_while_it_is_paused_by_an_abort_a_deadline_and_the_end_of_the_engine() -> None:
    driver = Driver()
    running = driver.submit(PROMPT, COUNT)
    driver.step()
    paused(driver)
    late, last = driver.submit(PROMPT, COUNT, deadline=driver.now + 1.0), driver.submit(PROMPT, COUNT)
    driver.intake.deliver(Abort((running,)), driver.now)
    driver.intake.deliver(CheckDeadlines(), driver.now + 2.0)
    driver.intake.deliver(EndAll(), driver.now + 2.0)
    assert [driver.cause(each) for each in (running, late, last)] == [Cause.CLIENT, Cause.TIMEOUT, Cause.DRAINED]
    driver.loop.check_all()


def test_whoever_had_the_clients_is_gone_and_so_are_their_requests() -> None:
    driver = Driver()
    running, waiting = driver.submit(PROMPT, COUNT), driver.submit(PROMPT, COUNT)
    driver.step()
    driver.intake.deliver(EndAll(Cause.DISCONNECT), driver.now)
    assert [driver.cause(each) for each in (running, waiting)] == [Cause.DISCONNECT] * 2
    driver.loop.check_all()


def test_a_loop_that_is_restored_from_a_checkpoint_is_paused_as_it_was() -> None:
    driver, other = Driver(), Driver()
    driver.submit(PROMPT, COUNT)
    paused(driver)
    restore(other.intake, snapshot_of(driver.intake))
    assert other.loop.serving is Serving.PAUSED
    other.intake.turn(0.0)
    assert not other.launched


def test_the_machine_takes_every_order_in_every_state() -> None:
    for state in Serving:
        assert SERVING.next(state, ServingEvent.PAUSE) is Serving.PAUSED
        assert SERVING.next(state, ServingEvent.CONTINUE) is Serving.SERVING
