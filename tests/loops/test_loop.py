"""The loop against the ghost: every request gets exactly the tokens its prompt implies, whatever the schedule."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.records import StepCommitted
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo, RequestTable
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import StepBatch, StepResult
from pawl.loops.batch import ScheduledBatch
from pawl.loops.pacing import PACINGS
from pawl.loops.requests import NOT_NUMBERS, NOT_OF_THE_GRAMMAR
from tests.loops.driver import CELLS, Driver


def prompts(count: int, length: int, seed: int = 0, shared: int = 0) -> list[list[int]]:
    source = random.Random(seed)
    prefix = [source.randrange(256) for _ in range(shared)]
    return [prefix + [source.randrange(256) for _ in range(length - shared)] for _ in range(count)]


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_every_cell_gives_the_tokens_the_prompts_imply(pacing: str, mixed: bool) -> None:
    driver = Driver(pacing=pacing, mixed=mixed)
    requests = {driver.submit(prompt, 10): prompt for prompt in prompts(20, 21)}
    driver.run()
    for request, prompt in requests.items():
        assert driver.output_of[request] == expected(prompt, 10)
        assert driver.cause(request) == Cause.LENGTH


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_memory_for_a_tenth_of_the_work_retracts_and_still_answers_everyone(pacing: str, mixed: bool) -> None:
    driver = Driver(pacing=pacing, mixed=mixed, num_pages=24, max_context=96, lookahead=4)
    requests = {driver.submit(prompt, 80): prompt for prompt in prompts(12, 9)}
    driver.run()
    for request, prompt in requests.items():
        assert driver.output_of[request] == expected(prompt, 80)
    assert driver.loop.counters.retractions > 0
    assert driver.loop.memory.pages.free + driver.loop.memory.pages.cached == 24


def test_a_shared_prefix_is_computed_once() -> None:
    driver = Driver(num_pages=200, max_running=16)
    for prompt in prompts(10, 41, shared=40):
        driver.submit(prompt, 4)
    driver.run()
    cached = [ending.info.num_cached for ending in driver.ending_of.values()]
    assert sorted(cached) == [0] + [40] * 9


def test_log_probabilities_are_recorded_only_of_steps_that_gave_some() -> None:
    driver = Driver()
    driver.submit(prompts(1, 9)[0], 4)
    driver.run()
    committed = [record for record in driver.records if isinstance(record, StepCommitted)]
    assert committed
    assert all(record.scores is None for record in committed)


def test_namespaces_share_nothing() -> None:
    driver = Driver()
    (prompt,) = prompts(1, 33)
    first = driver.submit(prompt, 2, namespace="a")
    driver.run()
    second = driver.submit(prompt, 2, namespace="b")
    driver.run()
    assert driver.ending_of[second].info.num_cached == 0
    assert driver.output_of[first] == driver.output_of[second]


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    driver = Driver(num_pages=4)
    request = driver.submit(prompts(1, 10)[0], 20)
    assert driver.cause(request) == Cause.NEVER_FITS
    assert not driver.step()


def test_a_full_queue_refuses_with_overloaded_and_loses_nobody() -> None:
    driver = Driver(max_queued=3)
    requests = [driver.submit(prompt, 3) for prompt in prompts(6, 8)]
    driver.run()
    causes = [driver.cause(request) for request in requests]
    assert causes == [Cause.LENGTH] * 3 + [Cause.OVERLOADED] * 3


def test_zero_new_tokens_ends_from_prefilling_without_output() -> None:
    driver = Driver()
    request = driver.submit(prompts(1, 40)[0], 0)
    driver.run()
    assert driver.output_of[request] == []
    assert driver.cause(request) == Cause.LENGTH


@pytest.mark.parametrize("pacing", PACINGS)
def test_a_stop_token_ends_the_request_where_it_is_drawn(pacing: str) -> None:
    driver = Driver(pacing=pacing)
    (prompt,) = prompts(1, 12)
    whole = expected(prompt, 20)
    request = driver.submit(prompt, 20, stop_token_ids=(whole[6],))
    driver.run()
    assert driver.output_of[request] == whole[: whole.index(whole[6]) + 1]
    assert driver.cause(request) == Cause.STOP_TOKEN


@pytest.mark.parametrize("pacing", PACINGS)
def test_deadlines_end_requests_wherever_they_are(pacing: str) -> None:
    driver = Driver(pacing=pacing, max_running=1)
    running = driver.submit(prompts(1, 8, 1)[0], 50, deadline=5.0)
    waiting = driver.submit(prompts(1, 8, 2)[0], 50, deadline=5.0)
    for _ in range(6):
        driver.step()
    driver.loop.requests.expire(driver.now)
    driver.run()
    assert driver.cause(running) == driver.cause(waiting) == Cause.TIMEOUT


@pytest.mark.parametrize("pacing", PACINGS)
def test_a_lost_step_is_rolled_back_and_requests_start_again(pacing: str) -> None:
    driver = Driver(pacing=pacing)
    requests = {driver.submit(prompt, 12): prompt for prompt in prompts(6, 21)}
    driver.ghost.fail_at = {4, 9}
    driver.run()
    assert driver.loop.counters.steps_lost >= 2
    ended = {request: driver.cause(request) for request in requests}
    assert set(ended.values()) <= {Cause.LENGTH, Cause.WORKER_LOST}
    for request, prompt in requests.items():
        if ended[request] == Cause.LENGTH:
            assert driver.output_of[request] == expected(prompt, 12)


@pytest.mark.parametrize(
    ("mark", "cause", "message"),
    [("refused", Cause.GRAMMAR, NOT_OF_THE_GRAMMAR), ("unusable", Cause.INTERNAL, NOT_NUMBERS)],
)
@pytest.mark.parametrize("pacing", PACINGS)
def test_who_gets_no_token_ends_with_the_reason_and_the_others_go_on(
    pacing: str, mark: str, cause: Cause, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(pacing=pacing)
    asked = prompts(3, 31)
    first, second, third = (driver.submit(prompt, 8) for prompt in asked)
    launch = driver.ghost.launch

    def marked(batch: StepBatch) -> StepResult:
        result, rows = launch(batch), driver.loop.in_flight[0].sampled_rows
        hers = rows == driver.loop.table.row_of.get(second, -1)
        if not hers.any() or len(driver.output_of[second]) < 3:
            return result
        return msgspec.structs.replace(result, **{mark: hers})

    monkeypatch.setattr(driver.ghost, "launch", marked)
    driver.run()
    assert [driver.cause(each) for each in (first, second, third)] == [Cause.LENGTH, cause, Cause.LENGTH]
    assert driver.ending_of[second].message == message
    assert driver.output_of[second] == expected(asked[1], 8)[:3]
    assert [driver.output_of[each] for each in (first, third)] == [expected(asked[0], 8), expected(asked[2], 8)]


def test_a_prompt_whose_vector_is_missing_ends_with_the_reason_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver(pacing="lockstep")
    first, second = (driver.submit([word] * 4, 0, temperature=0.0, embed=True) for word in (1, 2))
    launch = driver.ghost.launch

    def without_the_last(batch: StepBatch) -> StepResult:
        result = launch(batch)
        return msgspec.structs.replace(result, embeddings=result.embeddings[:-1])

    monkeypatch.setattr(driver.ghost, "launch", without_the_last)
    driver.run()
    assert [driver.cause(each) for each in (first, second)] == [Cause.EMBEDDED, Cause.INTERNAL]
    assert driver.ending_of[second].message == NOT_NUMBERS


def test_a_request_that_kills_the_worker_twice_is_ended() -> None:
    driver = Driver(pacing="lockstep")
    request = driver.submit(prompts(1, 8)[0], 8)
    driver.ghost.fail_at = {1, 2}
    driver.run()
    assert driver.cause(request) == Cause.WORKER_LOST


def test_steps_that_are_lost_with_what_computes_count_for_nobody() -> None:
    driver = Driver(pacing="lockstep")
    prompt = prompts(1, 8)[0]
    request = driver.submit(prompt, 8)
    for _ in range(5):
        driver.intake.turn(driver.now)
        driver.loop.failed(driver.launched.popleft().step, "rank 1 was ended", driver.now, blameless=True)
        driver.ghost.reset()
    driver.run()
    assert driver.cause(request) == Cause.LENGTH
    assert driver.output_of[request] == expected(prompt, 8)


def disturb(driver: Driver, shapes: list[tuple[int, int, int]], actions: list[tuple[int, int, str]]) -> None:
    """Serve prompts of some (length, outputs, tokens of its own) while requests are ended and steps fail by `actions`
    (step, which, what); those that survive have the tokens their prompts imply."""
    shared = prompts(1, 30, 7)[0]
    submitted = {}
    pending = list(shapes)
    by_step: dict[int, list[tuple[int, str]]] = {}
    for at, index, what in actions:
        by_step.setdefault(at, []).append((index, what))
    for at in range(4000):
        if pending:
            length, output, own = pending.pop()
            prompt = shared[: max(1, length - own)] + prompts(1, own, at)[0]
            submitted[driver.submit(prompt, output)] = (prompt, output)
        for index, what in by_step.get(at, ()):
            request = list(submitted)[index % len(submitted)]
            if what == "abort":
                driver.loop.requests.abort(request, Cause.CLIENT, driver.now)
            elif what == "finish" and driver.output_of.get(request):
                driver.loop.requests.finish(request, 1, driver.now)
            elif what == "fail" and driver.loop.in_flight:
                driver.ghost.fail_at.add(driver.loop.in_flight[0].step)
        if not driver.step() and not pending:
            break
    assert driver.loop.idle
    assert set(driver.ending_of) == set(submitted)
    for request, (prompt, output) in submitted.items():
        seen = driver.output_of[request]
        assert seen == expected(prompt, output)[: len(seen)]
        if driver.cause(request) == Cause.LENGTH:
            assert len(seen) == output


@given(
    cell=st.sampled_from(CELLS),
    num_pages=st.integers(8, 40),
    page_size=st.sampled_from([1, 4, 8]),
    shapes=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 30), st.integers(0, 20)), min_size=1, max_size=10),
    actions=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9), st.sampled_from(["abort", "fail", "finish"]))),
)
def test_aborts_failures_and_pressure_never_change_a_surviving_request(
    cell: tuple[str, bool],
    num_pages: int,
    page_size: int,
    shapes: list[tuple[int, int, int]],
    actions: list[tuple[int, int, str]],
) -> None:
    driver = Driver(
        pacing=cell[0],
        mixed=cell[1],
        num_pages=num_pages,
        page_size=page_size,
        max_running=4,
        prefill_chunk=8,
        lookahead=4,
    )
    disturb(driver, shapes, actions)
    pages = driver.loop.memory.pages
    assert pages.free + pages.cached == pages.total
    assert driver.loop.memory.cache.held == 0


def test_what_a_request_computed_is_there_for_one_that_goes_on_from_its_output() -> None:
    driver, prompt = Driver(), list(range(1, 9))
    first = driver.submit(prompt, 9)
    driver.run()
    second = driver.submit([*prompt, *driver.output_of[first]], 1)
    driver.run()
    assert driver.ending_of[second].info.num_cached == 16


def test_pages_of_requests_that_matter_least_leave_first_where_eviction_goes_by_priority() -> None:
    def cached(eviction: str, again: int) -> int:
        driver = Driver(eviction=eviction, num_pages=5, max_context=20)
        for letter, priority in ((1, 5), (2, 0), (3, 0)):
            driver.submit([letter] * 8, 1, priority=priority)
            driver.run()
        request = driver.submit([again] * 9, 1)
        driver.run()
        return driver.ending_of[request].info.num_cached

    assert cached("priority", 1) == 8
    assert cached("lru", 1) == 0


def test_the_row_of_who_left_work_and_ended_is_free_once_no_step_in_flight_names_it() -> None:
    driver = Driver(pacing="overlap")
    request = driver.submit([1, 2, 3], 8)
    driver.step()
    row = driver.loop.table.row_of[request]
    assert driver.launched, "a step is in flight"
    driver.loop.requests.retract(row, Cause.MEMORY, driver.now)
    driver.intake.abort(request, Cause.CLIENT, "", driver.now)
    assert row not in driver.loop.table._free
    driver.run()
    assert row in driver.loop.table._free


def test_a_first_token_is_told_of_the_time_when_it_came_whatever_follows() -> None:
    driver = Driver(pacing="lockstep")
    request = driver.submit([1, 2, 3], 4)
    driver.step()
    row = driver.loop.table.row_of[request]
    first = driver.loop.table.info(row).first_token
    assert first is not None
    driver.step()
    driver.loop.requests.retract(row, Cause.MEMORY, driver.now)
    driver.run()
    assert driver.ending_of[request].info.first_token == first


def test_hits_of_a_lost_step_count_no_more_but_for_who_has_left() -> None:
    table = RequestTable(2, 8)
    infos = [RequestInfo(cached, "", SamplingParameters(), "", 0.0, num_cached=cached) for cached in (4, 7)]
    rows = [table.open(info, np.array([1], np.int32), 0, 0.0) for info in infos]
    lost: Any = ScheduledBatch._make([None] * len(ScheduledBatch._fields))
    lost = lost._replace(rows=np.array(rows), attempts=table.attempt[rows], admitted=tuple(rows))
    assert lost.first_hits(table) == 11
    table.attempt[rows[1]] += 1
    assert lost.first_hits(table) == 4


def test_who_is_refused_a_token_in_the_middle_of_a_run_is_whose_run_it_is() -> None:
    def refused(*marks: bool) -> list[int]:
        drawn = np.zeros(len(marks), np.int32), None, (), None, np.array([2, 1], np.int32), np.array(marks)
        return [row for row, _ in step.left_without_answer(StepResult(1, *drawn), table)]

    table: Any = SimpleNamespace(attempt=np.zeros(6, np.int32))
    step: Any = ScheduledBatch._make([None] * len(ScheduledBatch._fields))
    batch = SimpleNamespace(samples=np.ones(2, np.bool_))
    rows, attempts = np.array([4, 5]), np.zeros(2, np.int32)
    step = step._replace(batch=batch, rows=rows, attempts=attempts, sampled_rows=rows, prefills=())
    assert [refused(*marks) for marks in ((True, False, False), (False, True, False), (False, False, True))] == [
        [4],
        [4],
        [5],
    ]
