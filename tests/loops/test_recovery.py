"""What a loop does after something of its own failed half-way: what it records, who ends, who goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial

import pytest

import pawl.loops.loop as loop_module
from pawl.actors.runtime.actor import places_of
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.marks import Contained
from pawl.lifecycle.records import StepPlanned, StepRolledBack, Transition
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.batch import BatchBuilder, GaveWay, ScheduledBatch
from pawl.loops.pacing import PACINGS
from pawl.loops.policy import FirstComeFirstServed, Policy, Waiting
from pawl.loops.recovery import FAILED, recover
from pawl.loops.requests import MAX_STRIKES
from pawl.memory.violation import MemoryViolation, raised_behind
from tests.loops.driver import Driver

FAILURE = "OSError at worker"
NOW = 77.0


def failing(driver: Driver, request: int = 0) -> list[object]:
    """Let the loop recover, and the worker begin anew; the records of that."""
    count = len(driver.records)
    driver.now = NOW
    recover(driver.loop, FAILURE, NOW, request)
    driver.launched.clear()
    driver.ghost.reset()
    driver.loop.check_all()
    return driver.records[count:]


def broken(*_: object, **__: object) -> None:
    raise OSError(FAILURE)


def at_work(pacing: str, *prompts: list[int]) -> Driver:
    """A loop with these prompts at work, and with as many steps in flight as it takes."""
    driver = Driver(pacing=pacing)
    for prompt in prompts:
        driver.submit(prompt, 8)
    driver.step()
    driver.intake.turn(driver.now)
    return driver


@pytest.mark.parametrize("pacing", PACINGS)
def test_steps_in_flight_are_recorded_as_rolled_back_newest_first_after_what_failed(pacing: str) -> None:
    driver = at_work(pacing, [1, 2, 3])
    in_flight = [scheduled.step for scheduled in driver.loop.in_flight]
    assert in_flight
    first, *records = failing(driver)
    assert first == Contained(0, FAILURE, NOW)
    rolled_back = [record for record in records if isinstance(record, StepRolledBack)]
    assert rolled_back == [StepRolledBack(step, FAILURE, NOW) for step in reversed(in_flight)]
    assert driver.loop.counters.steps_lost == len(in_flight)


def test_a_step_that_could_not_be_launched_is_recorded_and_rolled_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(pacing="lockstep")
    driver.submit([1, 2, 3], 8)

    with monkeypatch.context() as patch:
        patch.setattr(driver.loop.journal, "planned", broken)
        with pytest.raises(OSError, match=FAILURE):
            driver.intake.turn(driver.now)
    records = failing(driver)
    assert [record.step for record in records if isinstance(record, StepPlanned | StepRolledBack)] == [1, 1]
    driver.run()
    assert driver.output_of[1] == expected([1, 2, 3], 8)


class Slippery(deque[ScheduledBatch]):
    """Nothing can be taken out of its end, once."""

    fails = True

    def pop(self) -> ScheduledBatch:  # type: ignore[override]
        if self.fails:
            self.fails = False
            raise OSError(FAILURE)
        return super().pop()


@pytest.mark.parametrize("place", ["in flight", "lose_runner"])
def test_a_lost_step_whose_handling_fails_is_counted_once_and_so_are_strikes(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    driver = at_work("overlap", [1, 2, 3], [4, 5, 6])
    loop = driver.loop
    steps = [scheduled.step for scheduled in loop.in_flight]
    assert len(steps) == 2
    count = len(driver.records)
    with monkeypatch.context() as patch:
        if place == "in flight":
            loop.in_flight = Slippery(loop.in_flight)
        else:
            patch.setattr(loop_module, place, broken)
        with pytest.raises(OSError, match=FAILURE):
            loop.failed(steps[0], "lost", NOW)
    failing(driver)
    undone = [record.step for record in driver.records[count:] if isinstance(record, StepRolledBack)]
    assert undone == steps[::-1]
    assert loop.counters.steps_lost == 2
    infos = [loop.table.info(row) for row in loop.table.live_rows().tolist()]
    assert [info.strikes for info in infos] == [1, 1]
    driver.run()
    assert list(driver.output_of.values()) == [expected([1, 2, 3], 8), expected([4, 5, 6], 8)]


def test_a_step_delay_begins_anew_with_the_failure() -> None:
    driver = at_work("lockstep", [1, 2, 3])
    failing(driver)
    assert driver.loop.limits.ready_at == NOW


@pytest.mark.parametrize("pacing", PACINGS)
def test_who_ran_starts_again_and_gets_every_token_once(pacing: str) -> None:
    prompts = [1, 2, 3], [4, 5, 6, 7, 8]
    driver = at_work(pacing, *prompts)
    moves = [(record.event, record.cause) for record in failing(driver) if isinstance(record, Transition)]
    assert moves == [(Event.RETRACT, Cause.STEP_LOST)] * 2
    assert [driver.loop.table.info(row).num_retractions for row in driver.loop.table.live_rows()] == [1, 1]
    driver.run()
    assert list(driver.output_of.values()) == [expected(prompt, 8) for prompt in prompts]


def test_who_ran_waits_among_the_retracted_and_who_waited_stays_in_the_queue() -> None:
    driver = Driver(max_running=1)
    ran, waited = driver.submit([1, 2, 3], 8), driver.submit([4, 5, 6], 8)
    driver.step()
    failing(driver)
    queues, row_of = driver.loop.queues, driver.loop.table.row_of
    assert (queues.retracted, [*queues.waiting]) == ([row_of[ran]], [row_of[waited]])


def test_who_ran_comes_back_before_who_waited() -> None:
    driver = Driver(pacing="lockstep", max_running=2)
    for first in (1, 2, 3):
        driver.submit([first, 5, 6], 8)
    driver.intake.turn(driver.now)
    failing(driver)
    count = len(driver.records)
    driver.intake.turn(driver.now)
    moves = [record for record in driver.records[count:] if isinstance(record, Transition)]
    assert [move.request for move in moves if move.event == Event.ADMIT] == [1, 2]


def test_the_request_that_it_failed_for_ends_alone() -> None:
    driver = at_work("overlap", [1, 2, 3], [4, 5, 6])
    assert failing(driver, request=2)[0] == Contained(2, FAILURE, NOW)
    assert (driver.cause(2), driver.ending_of[2].message) == (Cause.INTERNAL, FAILED)
    driver.run()
    assert driver.output_of[1] == expected([1, 2, 3], 8)
    assert driver.cause(1) == Cause.LENGTH


@pytest.mark.parametrize("work", ["retract", "leave"])
def test_a_request_of_which_a_move_could_not_be_recorded_is_what_it_failed_for(
    work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = at_work("lockstep", [1, 2, 3], [4, 5])
    requests, row = driver.loop.requests, int(driver.loop.queues.running()[1])
    moves = {
        "retract": partial(requests.retract, row, Cause.MEMORY, driver.now),
        "leave": partial(requests.leave, row, Event.ABORT, Cause.CLIENT, driver.now),
    }

    def fails(*_: object, **__: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(driver.loop.journal, "moved", fails)
    with pytest.raises(OSError, match="no space"):
        moves[work]()
    assert requests.interrupted() == row
    assert requests.interrupted() is None


def test_a_request_that_could_not_be_admitted_a_while_ago_is_not_what_it_failed_for() -> None:
    driver = Driver(pacing="overlap", num_pages=4, page_size=2)
    driver.submit([1, 2, 3], 2)
    driver.submit([4, 5, 6, 7], 3)
    driver.step()
    driver.intake.turn(driver.now)
    assert len(driver.loop.in_flight) == 1  # with which the first has all it wants, and there is no room for the second
    assert failing(driver)[0] == Contained(0, FAILURE, NOW)
    driver.run()
    assert list(driver.output_of.values()) == [expected([1, 2, 3], 2), expected([4, 5, 6, 7], 3)]


def test_who_ran_each_time_it_failed_for_nobody_ends_at_last_and_who_waited_does_not() -> None:
    driver = Driver(pacing="lockstep", max_running=1)
    for prompt in ([1, 2, 3], [4, 5, 6]):
        driver.submit(prompt, 8)
    for strikes in range(MAX_STRIKES):
        assert strikes == driver.loop.table.info(driver.loop.table.row_of[1]).strikes
        driver.intake.turn(driver.now)
        failing(driver)
    assert (driver.cause(1), driver.ending_of[1].message) == (Cause.INTERNAL, FAILED)
    driver.run()
    assert driver.output_of[2] == expected([4, 5, 6], 8)


class Raises(FirstComeFirstServed):
    """An order of admission that raises, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def order(self, rows: Sequence[int], waiting: Waiting) -> Sequence[int]:
        self.times -= 1
        if self.times >= 0:
            raise KeyError("mine")
        return super().order(rows, waiting)


def with_policy(policy: Policy) -> tuple[Driver, list[MemoryViolation]]:
    """One request at work, two that come when there is such an order of admission; and what the loop tells."""
    told: list[MemoryViolation] = []
    driver = Driver(pacing="overlap")
    driver.violated = told.append  # type: ignore[method-assign]
    driver.submit([1, 2, 3], 8)
    driver.step()
    admission = driver.loop.planner.admission
    admission.policy = policy
    for prompt in ([4, 5, 6], [7, 8, 9]):
        driver.submit(prompt, 3)
    driver.run()
    driver.loop.check_all()
    return driver, told


def test_an_order_of_admission_that_raises_once_costs_nobody_anything() -> None:
    driver, told = with_policy(Raises(1))
    assert [driver.cause(request) for request in (1, 2, 3)] == [Cause.LENGTH] * 3
    assert driver.loop.counters.retractions == 0
    (violation,) = told
    raised = raised_behind(violation)
    assert isinstance(raised, KeyError)
    assert "test_recovery.py" in places_of(raised)[-1]


def test_an_order_of_admission_that_always_raises_ends_those_it_was_to_order_and_nobody_else() -> None:
    driver, _ = with_policy(Raises(100))
    assert [driver.cause(request) for request in (1, 2, 3)] == [Cause.LENGTH, Cause.INTERNAL, Cause.INTERNAL]
    assert driver.output_of[1] == expected([1, 2, 3], 8)
    assert driver.loop.counters.retractions == 0


def test_all_whom_a_plan_had_begun_to_retract_are_retracted_once_by_what_it_failed_for() -> None:
    driver = at_work("lockstep", [1, 2, 3], [4, 5, 6])
    driver.step()
    driver.step()
    loop, sources = driver.loop, dict[int, State]()
    builder = BatchBuilder(loop.memory.ledger.begin(), loop.table, [])
    for row in loop.queues.running().tolist():
        attempt = int(loop.table.attempt[row])
        sources[row] = loop.queues.retract(row, Cause.MEMORY)
        builder.retracted.append(GaveWay(row, sources[row], attempt))
    loop.planning = builder
    attempts = {row: int(loop.table.attempt[row]) for row in sources}
    moves = [record for record in failing(driver) if isinstance(record, Transition)]
    told = {(move.row, move.source, move.event, move.cause) for move in moves}
    assert told == {(row, source, Event.RETRACT, Cause.STEP_LOST) for row, source in sources.items()}
    assert len(moves) == len(sources) == 2
    assert {row: int(loop.table.attempt[row]) for row in sources} == attempts
    driver.run()
    assert list(driver.output_of.values()) == [expected([1, 2, 3], 8), expected([4, 5, 6], 8)]
    assert [ending.info.num_retractions for ending in driver.ending_of.values()] == [1, 1]


def test_who_gives_way_and_is_admitted_again_in_one_plan_is_recorded_as_both(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(pacing="overlap", prefill_chunk=4, page_size=2)
    loop = driver.loop
    plan, prompts, again = loop.planner.plan, ([1, 2, 3], list(range(4, 14))), list[int]()

    def squeezed(builder: BatchBuilder) -> None:
        row = loop.table.row_of[2]
        if again or loop.table.state_of(row) != State.PREFILLING:
            return plan(builder)
        builder.retracted.append(GaveWay(row, State.PREFILLING, int(loop.table.attempt[row])))
        loop.queues.retract(row, Cause.MEMORY)
        plan(builder)
        again.extend(builder.admitted)
        return None

    monkeypatch.setattr(loop.planner, "plan", squeezed)
    for prompt in prompts:
        driver.submit(prompt, 8)
    driver.run()
    assert again == [1]
    moves = [record for record in driver.records if isinstance(record, Transition) and record.request == 2]
    assert [move.event for move in moves[1:4]] == [Event.ADMIT, Event.RETRACT, Event.ADMIT]
    assert list(driver.output_of.values()) == [expected(prompt, 8) for prompt in prompts]
    assert loop.counters.retractions == driver.ending_of[2].info.num_retractions


def test_who_gives_way_and_is_admitted_again_is_retracted_once_if_that_fails() -> None:
    driver = at_work("lockstep", [1, 2, 3], [4, 5, 6])
    driver.step()
    loop, row = driver.loop, driver.loop.table.row_of[2]
    source, attempt = loop.table.state_of(row), int(loop.table.attempt[row])
    loop.planning = builder = BatchBuilder(loop.memory.ledger.begin(), loop.table, [])
    builder.retracted.append(GaveWay(row, source, attempt))
    loop.queues.retract(row, Cause.MEMORY)
    loop.planner.plan(builder)
    assert builder.admitted == [row]
    builder.trying = None  # whoever is, ends
    moves = [record for record in failing(driver) if isinstance(record, Transition) and record.request == 2]
    assert [(move.source, move.event) for move in moves] == [(source, Event.RETRACT)]
    driver.run()
    assert list(driver.output_of.values()) == [expected([1, 2, 3], 8), expected([4, 5, 6], 8)]
    assert driver.ending_of[2].info.num_retractions == 1


def test_who_was_about_to_give_way_when_planning_failed_has_not_and_who_had_is_recorded_once() -> None:
    driver = Driver(pacing="lockstep")
    for _ in range(2):
        driver.submit([1, 2, 3], 9)
    driver.step()
    loop = driver.loop
    about, had = loop.queues.running().tolist()
    begun = [GaveWay(row, loop.table.state_of(row), int(loop.table.attempt[row])) for row in (about, had)]
    loop.queues.retract(had, Cause.MEMORY)
    driver.records.clear()
    for _ in range(2):
        loop.requests.gave_way(begun, Cause.STEP_LOST, driver.now)
    told = [(each.row, each.event) for each in driver.records if isinstance(each, Transition)]
    assert (told, loop.counters.retractions) == ([(had, Event.RETRACT)], 1)
    assert [each.recorded for each in begun] == [False, True]


def test_a_turn_without_work_which_no_record_tells_of_leaves_what_decides_as_it_is() -> None:
    driver = Driver()
    driver.loop.try_again = True  # a plan has failed
    driver.loop.turn(driver.now)
    assert driver.loop.try_again, "a replay makes no such turn"


@pytest.mark.parametrize("blameless", [False, True])
@pytest.mark.parametrize("pacing", PACINGS)
def test_a_lost_step_keeps_its_reason_where_its_rollback_could_not_be_recorded(
    pacing: str, blameless: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = at_work(pacing, [1, 2, 3])
    in_flight = [scheduled.step for scheduled in driver.loop.in_flight]
    with monkeypatch.context() as patch:
        patch.setattr(driver.loop.journal, "rolled_back", broken)
        with pytest.raises(OSError, match=FAILURE):
            driver.loop.failed(in_flight[0], "the worker was lost", driver.now, blameless)
    rolled_back = [record for record in failing(driver) if isinstance(record, StepRolledBack)]
    assert [(record.step, record.reason, record.blameless) for record in rolled_back] == [
        (step, "the worker was lost", blameless) for step in reversed(in_flight)
    ]
    driver.run()
    assert driver.output_of == {1: expected([1, 2, 3], 8)}


@pytest.mark.parametrize("pacing", PACINGS)
@pytest.mark.parametrize("at_work", [0, 1])
def test_what_fails_for_nobody_before_anything_runs_is_a_failure_of_the_loop(
    pacing: str, at_work: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whom it was tried for, or who ran, is tried again; where there is nobody no turn would come."""
    driver, told = Driver(pacing=pacing, max_running=1), list[MemoryViolation]()
    monkeypatch.setattr(driver, "violated", told.append)
    for prompt in ([1, 2, 3], [4, 5]):
        driver.submit(prompt, 4)
    for _ in range(at_work):
        driver.step()
    with monkeypatch.context() as patch:
        plan = driver.loop.planner.plan

        def fails_once(builder: BatchBuilder) -> None:
            patch.setattr(driver.loop.planner, "plan", plan)
            broken()

        patch.setattr(driver.loop.planner, "plan", fails_once)
        if at_work:
            driver.step()
        else:
            with pytest.raises(OSError, match=FAILURE):
                driver.step()
            recover(driver.loop, FAILURE, driver.now)
    assert [type(each.__cause__) for each in told] == [OSError]
    driver.run()
    assert [driver.output_of[number] for number in (1, 2)] == [expected([1, 2, 3], 4), expected([4, 5], 4)]
