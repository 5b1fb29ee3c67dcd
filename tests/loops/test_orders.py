"""Orders to a loop, given as a scheduler gives them: what each does, and what it answers."""

from __future__ import annotations

import pytest

from pawl.features.request import GRAMMARS
from pawl.lifecycle.machines.session import SessionPhase
from pawl.lifecycle.numbers import LONG
from pawl.lifecycle.records import Submitted, Transition
from pawl.lifecycle.states import Cause, Event
from pawl.loops.intake import Order, Outcome, WaitEnds
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.grammars import GrammarFailed, GrammarReady
from pawl.loops.orders.requests import Abort, Drain, EndAll, Finish
from pawl.loops.orders.runner import RunnerGone
from pawl.loops.orders.sessions import CloseSession, ExpireSession, OpenSession
from tests.loops.driver import Driver

PROMPT = [1, 2, 3]


def test_a_flush_that_may_wait_is_answered_when_the_loop_rests() -> None:
    driver = Driver()
    driver.submit(PROMPT, 3)
    driver.intake.deliver(FlushCache(9.0), driver.now, 7)
    assert driver.outcome_of == {}
    driver.run()
    assert driver.outcome_of[7] == Outcome(
        True, "cache flushed", {"waiting": 0, "running": 0, "in_flight": 0, "paused": False, "released": []}
    )
    assert driver.loop.memory.cache.statistics()["pages"] == 0


def test_a_flush_at_rest_is_done_at_once_also_one_that_may_wait() -> None:
    driver = Driver()
    driver.intake.deliver(FlushCache(9.0), driver.now, 7)
    assert driver.outcome_of[7].ok
    assert driver.intake.waiting == {}


def test_the_end_of_a_wait_that_was_over_before_is_no_order_any_more() -> None:
    driver = Driver()
    driver.submit(PROMPT, 3)
    driver.intake.deliver(FlushCache(9.0), driver.now, 7)
    driver.run()
    count = len(driver.records)
    driver.intake.deliver(WaitEnds(7), driver.now)
    assert len(driver.records) == count


def test_a_flush_whose_time_is_over_is_refused_and_says_what_is_live() -> None:
    driver = Driver()
    driver.submit(PROMPT, 3)
    driver.intake.deliver(FlushCache(9.0), driver.now, 7)
    driver.intake.deliver(WaitEnds(7), driver.now)
    outcome = driver.outcome_of[7]
    assert (outcome.ok, outcome.facts["waiting"]) == (False, 1)


def test_an_abort_ends_those_it_names_and_remembers_one_that_is_still_to_come() -> None:
    driver = Driver()
    kept, ended = driver.submit(PROMPT, 3), driver.submit(PROMPT, 3)
    driver.intake.deliver(Abort((ended, ended + 1)), driver.now)
    coming = driver.submit(PROMPT, 3)
    driver.run()
    assert [driver.cause(request) for request in (kept, ended, coming)] == [Cause.LENGTH, Cause.CLIENT, Cause.CLIENT]


def test_an_abort_is_remembered_only_until_a_later_request_comes() -> None:
    driver = Driver()
    ended = driver.submit(PROMPT, 1)
    driver.run()
    driver.intake.deliver(Abort((ended, ended + 1, ended + 3)), driver.now)
    assert list(driver.intake._ended_early) == [ended + 1, ended + 3]
    driver._next += 1  # that one was refused on its way
    driver.submit(PROMPT, 1)
    assert list(driver.intake._ended_early) == [ended + 3]


def test_an_abort_of_a_long_prompt_is_remembered_while_short_ones_come() -> None:
    driver = Driver()
    driver.submit(PROMPT, 1)
    driver.intake.deliver(Abort((LONG,)), driver.now)
    driver._next = LONG + 1
    driver.submit(PROMPT, 1)
    assert list(driver.intake._ended_early) == [LONG]
    driver._next = LONG  # it has been read
    assert driver.submit(PROMPT, 3) == LONG
    driver.run()
    assert driver.cause(LONG) == Cause.CLIENT
    assert driver.intake._ended_early == {}


def test_whoever_is_live_when_the_engine_stops_is_drained() -> None:
    driver = Driver()
    request = driver.submit(PROMPT, 30)
    driver.step()
    driver.loop.stop(driver.now)
    assert driver.cause(request) == Cause.DRAINED


def test_a_drain_refuses_what_arrives_and_its_end_ends_what_is_left() -> None:
    driver = Driver()
    before = driver.submit(PROMPT, 30)
    driver.step()
    driver.intake.deliver(Drain(5.0), driver.now)
    after = driver.submit(PROMPT, 3)
    assert (driver.cause(after), before in driver.ending_of) == (Cause.DRAINED, False)
    driver.intake.deliver(EndAll(), driver.now)
    assert driver.cause(before) == Cause.DRAINED


def test_who_was_aborted_before_it_came_keeps_that_cause_in_a_drain() -> None:
    driver = Driver()
    driver.intake.deliver(Abort((1,), Cause.DISCONNECT), driver.now)
    driver.intake.deliver(Drain(5.0), driver.now)
    assert driver.cause(driver.submit(PROMPT, 3)) == Cause.DISCONNECT


def test_the_timer_of_a_session_that_was_closed_does_not_end_the_next_one_of_its_name() -> None:
    driver = Driver()
    sessions = driver.loop.requests.sessions
    for number, order in enumerate((OpenSession("s", 0, 5.0), CloseSession("s"), OpenSession("s", 0, 5.0)), 1):
        driver.intake.deliver(order, driver.now, number)
        assert driver.outcome_of[number].ok
        if number == 1:
            timer = ExpireSession("s", sessions.by_name["s"].num_uses)
    driver.intake.deliver(timer, driver.now)
    assert sessions.by_name["s"].phase is SessionPhase.OPEN
    driver.intake.deliver(ExpireSession("s", sessions.by_name["s"].num_uses), driver.now)
    assert not sessions.by_name


def test_what_computes_is_gone_for_who_runs_and_a_step_in_flight_says_so_itself() -> None:
    driver = Driver(pacing="lockstep")
    driver.submit(PROMPT, 3)
    driver.step()
    assert not driver.loop.in_flight
    driver.intake.turn(driver.now)
    assert driver.loop.in_flight
    driver.intake.deliver(RunnerGone(), driver.now)
    assert driver.loop.counters.retractions == 0
    driver.step()
    assert not driver.loop.in_flight
    driver.intake.deliver(RunnerGone(), driver.now)
    assert driver.loop.counters.retractions == 1
    assert driver.loop.memory.cache.statistics()["pages"] == 0
    driver.run()
    assert len(driver.output_of[1]) == 3


@pytest.mark.parametrize("before", [[], [GrammarReady(1)]], ids=["its grammar is compiled", "it waits for its turn"])
def test_a_stop_string_in_output_of_a_lost_replica_ends_a_request_wherever_it_waits(before: list[Order]) -> None:
    driver = Driver(max_running=1)
    request = driver.submit([1, 2], 5, grammar=GRAMMARS[0], output=[97, 98])
    for order in before:
        driver.intake.deliver(order, driver.now)
    driver.intake.deliver(Finish(request, 1), driver.now)
    assert driver.cause(request) is Cause.STOP_STRING
    driver.run()
    assert not driver.loop.table.row_of


def test_a_grammar_that_cannot_be_used_ends_its_request_then_with_what_is_wrong_with_it() -> None:
    driver = Driver(max_running=1)
    request = driver.submit([1, 2], 5, grammar=GRAMMARS[0])
    driver.intake.deliver(GrammarFailed(request, "no rule of that name"), 7.5)
    ending = driver.ending_of[request]
    assert (ending.cause, ending.message) == (Cause.GRAMMAR, "no rule of that name")
    (end,) = [each for each in driver.records if isinstance(each, Transition) and each.event is Event.ABORT]
    assert end.time == 7.5
    driver.intake.deliver(GrammarFailed(request, "again"), 8.0)
    assert not driver.loop.table.row_of


def test_who_is_refused_before_anything_runs_leaves_its_row_to_the_next() -> None:
    """No step names it: nothing has to come back first."""
    driver = Driver(max_queued=1)
    first = driver.submit([1, 2], 5)
    for _ in range(3):
        refused = driver.submit([3, 4], 5)
        assert driver.cause(refused) is Cause.OVERLOADED
    rows = [each.row for each in driver.records if isinstance(each, Submitted)]
    assert rows[1:] == [rows[1]] * 3
    driver.run()
    assert driver.cause(first) is Cause.LENGTH
