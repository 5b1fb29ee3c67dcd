"""A recorded run replays to the same records; a record that was changed shows where."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.lifecycle.properties.history import MOST_PAGES, MOST_ROWS
from pawl.lifecycle.records import (
    DECODER,
    ENCODER,
    STOPPED,
    Answered,
    AnswersClosed,
    Cached,
    Closed,
    Flushed,
    Gap,
    Idled,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Transition,
)
from pawl.lifecycle.states import Cause, Event
from pawl.lifecycle.step import StepBatch, StepResult
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.requests import Abort, CheckDeadlines, Finish
from pawl.loops.pacing import PACINGS
from pawl.loops.replay import Diverged, NotReplayable, Replay, replay
from tests.lifecycle.story import replies_of
from tests.loops.driver import CELLS, Driver, first_record


def record_run(
    seed: int, pacing: str = "overlap", mixed: bool = True, policy: str = "fcfs", *, whole: bool = True
) -> list[Record]:
    """A run with arrivals, aborts, stop strings, deadlines, lost steps and flushes, as a reader of its trace gets it.
    Not `whole`: as if the engine had been killed at the end."""
    return DECODER.decode(_recorded(seed, pacing, mixed, policy, whole))


@lru_cache(maxsize=128)
def _recorded(seed: int, pacing: str, mixed: bool, policy: str, whole: bool) -> bytes:
    """The records of such a run, encoded: many tests read the same ones."""
    source = random.Random(seed)
    driver = Driver(
        pacing=pacing, mixed=mixed, policy=policy, num_pages=20, max_context=60, max_running=4, lookahead=4, seed=seed
    )
    waiting = [[source.randrange(3) for _ in range(source.randrange(1, 30))] for _ in range(20)]
    driver.ghost.fail_at = {source.randrange(5, 40)}
    number = 0
    while True:
        for _ in range(source.randrange(3)):
            if waiting:
                until = driver.now + source.choice((8.0, 500.0))
                driver.submit(waiting.pop(), source.randrange(1, 25), priority=source.randrange(3), deadline=until)
        event = source.random()
        live = [request for request in driver.output_of if request not in driver.ending_of]
        if live and event < 0.1:
            driver.intake.deliver(Abort((source.choice(live),)), driver.now)
        elif (said := [request for request in live if len(driver.output_of[request]) > 1]) and event < 0.15:
            request = source.choice(said)
            driver.intake.deliver(Finish(request, len(driver.output_of[request]) // 2), driver.now)
        elif event < 0.2:
            number += 1
            driver.intake.deliver(FlushCache(source.choice((0.0, 9.0))), driver.now, number)
        elif event < 0.22 and len(waiting) > 1:
            # Of a request that is still on its way.
            driver.intake.deliver(Abort((len(driver.output_of) + 2,)), driver.now)
        if driver.now % 5 == 0:
            driver.intake.deliver(CheckDeadlines(), driver.now)
        if not driver.step() and not waiting:
            break
    driver.intake.deliver(FlushCache(), driver.now)
    if whole:
        loop = driver.loop
        loop.journal.closed(STOPPED, loop.counters, len(loop.table), loop.memory.pages)
    made: list[Record] = [first_record(driver.config, seed), *driver.records]  # type: ignore[list-item]
    made += replies_of(made) if whole else ()
    return ENCODER.encode(made)


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
@pytest.mark.parametrize("policy", ["fcfs", "lpm", "random"])
def test_the_same_inputs_give_the_same_records(pacing: str, mixed: bool, policy: str) -> None:
    for seed in range(8):
        records = record_run(seed, pacing, mixed, policy)
        assert replay(records).number == len(records)


def test_the_runs_of_these_tests_have_every_kind_of_input() -> None:
    kinds: set[type] = set()
    for seed in range(8):
        kinds |= {type(record) for record in record_run(seed)}
    assert {StepRolledBack, Flushed, Idled, Transition, StepPlanned} <= kinds


Change = Callable[[list[Record], int], list[Record]]


def _dropped(records: list[Record], index: int) -> list[Record]:
    return records[:index] + records[index + 1 :]


def _doubled(records: list[Record], index: int) -> list[Record]:
    return records[: index + 1] + records[index:]


def _swapped(records: list[Record], index: int) -> list[Record]:
    return [*records[:index], records[index + 1], records[index], *records[index + 2 :]]


@pytest.mark.parametrize("change", [_dropped, _doubled, _swapped])
@given(seed=st.integers(0, 5), where=st.floats(0, 1))
def test_a_decision_that_was_moved_is_found(change: Change, seed: int, where: float) -> None:
    records = record_run(seed)
    decisions = [
        index
        for index, record in enumerate(records[:-1])
        if isinstance(record, StepPlanned) and not isinstance(records[index + 1], StepPlanned)
    ]
    index = decisions[int(where * (len(decisions) - 1))]
    with pytest.raises(Diverged):
        replay(change(records, index))


def test_another_token_shows_at_the_step_that_ends_with_it() -> None:
    records = record_run(1)
    index = next(i for i, record in enumerate(records) if isinstance(record, StepCommitted) and record.tokens)
    committed = records[index]
    assert isinstance(committed, StepCommitted)
    records[index] = msgspec.structs.replace(committed, events=bytes([Event.STALE_TOKEN] * len(committed.events)))
    with pytest.raises(Diverged) as caught:
        replay(records)
    assert caught.value.number == index + 1


@pytest.mark.parametrize(
    "records",
    [
        [],
        [Flushed(0.0)],
        [msgspec.structs.replace(record_run(1)[0], config={})],
        [record_run(1)[0], Gap(3, "full disk")],
    ],
    ids=["nothing", "no beginning", "no configuration", "a gap"],
)
def test_a_trace_that_lacks_something_is_refused(records: Sequence[Record]) -> None:
    with pytest.raises(NotReplayable):
        replay(records)


def test_a_run_is_over_at_its_last_record_and_not_before() -> None:
    first, *rest = record_run(0)
    run, over = Replay.begin(first), False
    for record in rest:
        assert run.closed == over
        run.feed(record)
        over |= isinstance(record, Closed)
    assert run.closed
    assert over


@pytest.mark.parametrize(
    "more",
    [{"num_pages": MOST_PAGES + 1}, {"num_window_pages": MOST_PAGES + 1}, {"max_running": MOST_ROWS + 1}],
    ids=str,
)
def test_a_loop_larger_than_any_engine_is_refused_before_it_is_made(more: dict[str, int]) -> None:
    started = record_run(0)[0]
    assert isinstance(started, Started)
    config = started.config | {"loop": started.config["loop"] | more}
    with pytest.raises(NotReplayable, match="more pages or rows than any engine"):
        Replay(msgspec.structs.replace(started, config=config))


@pytest.mark.parametrize("missing", ["refused", "unusable", "a vector"])
@pytest.mark.parametrize("pacing", PACINGS)
def test_who_gets_no_answer_of_a_step_ends_in_a_replay_as_well(pacing: str, missing: str) -> None:
    driver = Driver(pacing=pacing, num_pages=20, max_running=4)
    for word in range(3):
        asks = {"embed": True} if missing == "a vector" else {}
        driver.submit([word] * 5, 0 if asks else 8, **asks)
    launch, steps = driver.ghost.launch, 0

    def some_without(batch: StepBatch) -> StepResult:
        nonlocal steps
        result, rows = launch(batch), driver.loop.in_flight[0].sampled_rows
        steps += 1
        if missing == "a vector":
            return msgspec.structs.replace(result, embeddings=result.embeddings[:-1])
        return msgspec.structs.replace(result, **{missing: np.arange(len(rows)) == steps % 5})

    driver.ghost.launch = some_without  # type: ignore[method-assign]
    driver.run()
    causes = {ending.cause for ending in driver.ending_of.values()}
    assert causes & {Cause.GRAMMAR, Cause.INTERNAL}
    records = DECODER.decode(ENCODER.encode([first_record(driver.config, 0), *driver.records]))
    assert replay(records).number == len(records)


def test_a_trace_that_ends_anywhere_lacks_what_was_decided_there_and_nothing_else() -> None:
    started, *records = [record for record in record_run(3) if not isinstance(record, Answered | AnswersClosed)]
    assert isinstance(started, Started)
    replayed, lacking = Replay(started), 0
    for record, following in pairwise(records):
        replayed.feed(record)
        lacks: Diverged | None = None
        try:
            replayed.finish()
        except Diverged as diverged:
            lacks = diverged
            lacking += 1
        if lacks is None:
            assert not isinstance(record, Cached)
        elif lacks.recorded is not None:
            assert isinstance(record, Cached), "it is of what comes next"
            assert (lacks.number, lacks.made) == (replayed.number, None)
            assert ENCODER.encode(lacks.recorded) == ENCODER.encode(record)
        else:
            assert lacks.number == replayed.number
            assert ENCODER.encode(lacks.made) == ENCODER.encode(following)
    assert lacking > len(records) // 3
