"""Requests that draw several tokens in one step get the tokens that they get one by one, and keep no page too many."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import DECODER, ENCODER, STOPPED, Record, Started, StepCommitted, int32s
from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import Bools, Int32s, StepResult
from pawl.loops.batch import ScheduledBatch
from pawl.loops.loop import Loop
from pawl.loops.orders.requests import Abort, Finish
from pawl.loops.planner import UnifiedPlanner
from pawl.loops.properties.base import Broken
from pawl.loops.replay import Replay
from pawl.loops.runs import Runs, cut_runs
from pawl.loops.speculation import Drafter, Drafts, SpeculationConfig
from pawl.memory.arrays import Indices
from tests.loops.driver import CELLS, Driver, first_record

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


class Prophet(Drafter):
    """Drafts the tokens that the ghost will say, the first `right` of each draft, in every step; None: as many as
    chance has it, and a pause after none. What follows is wrong."""

    def __init__(self, drafter: Drafter, right: int | None, seed: int) -> None:
        super().__init__(drafter.table, drafter.config, most=drafter.most)
        self._right = right
        self._chance = random.Random(seed)

    def draft(self, rows: Indices, starts: Int32s) -> Drafts | None:
        self.table.draft_length[rows] = self.config.num_speculative_tokens
        if self._right is not None:
            self.table.draft_from[rows] = 0
        return super().draft(rows, starts)

    def _continuation(self, text: Int32s, count: int) -> Int32s:
        right = self._chance.randrange(count + 1) if self._right is None else self._right
        tokens = np.array(expected(text.tolist(), count), np.int32)
        tokens[right:] = (tokens[right:] + 1) % 256
        return tokens


class RunDriver(Driver):
    """A loop with drafts of `width` tokens, the first `right` of each right; None: as many as chance has it."""

    width = 5

    def __init__(self, right: int | None = None, seed: int = 0, **overrides: object) -> None:
        config = SpeculationConfig(
            num_speculative_tokens=self.width, prompt_lookup_min=1, prompt_lookup_max=2, max_positions=16
        )
        super().__init__(speculation=config, **overrides)
        foresee(self.loop, right, seed)

    @property
    def run_lengths(self) -> list[int]:
        """Tokens of every segment of every step, where there were runs."""
        steps = [each for each in self.records if isinstance(each, StepCommitted) and each.counts is not None]
        return [count for each in steps for count in int32s(each.counts).tolist()]

    def trace(self) -> list[Record]:
        """What was recorded, as a reader of the trace gets it."""
        loop = self.loop
        loop.journal.closed(STOPPED, loop.counters, len(loop.table), loop.memory.pages)
        made: list[Record] = [first_record(self.config), *self.records]  # type: ignore[list-item]
        return DECODER.decode(ENCODER.encode(made))


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
@pytest.mark.parametrize("right", [0, 1, 5])
def test_tokens_are_those_drawn_one_by_one(pacing: str, mixed: bool, right: int) -> None:
    driver = RunDriver(right, pacing=pacing, mixed=mixed)
    requests = {driver.submit(prompt, 23): prompt for prompt in (PROMPT, [2, 7, 1], PROMPT[:5])}
    driver.run()
    for request, prompt in requests.items():
        assert driver.output_of[request] == expected(prompt, 23)
        assert driver.cause(request) == Cause.LENGTH
    assert max(driver.run_lengths) == right + 1
    assert driver.loop.counters.generated_tokens == 3 * 23


@pytest.mark.parametrize("place", range(1, 8))
def test_a_stop_token_within_a_run_ends_the_request_there(place: int) -> None:
    tokens = expected(PROMPT, 23)
    stop = tokens[place]
    driver = RunDriver(5)
    request = driver.submit(PROMPT, 23, stop_token_ids=(stop,))
    driver.run()
    assert driver.output_of[request] == tokens[: tokens.index(stop) + 1]
    assert driver.cause(request) == Cause.STOP_TOKEN
    assert driver.loop.counters.generated_tokens == tokens.index(stop) + 1


def test_a_run_never_goes_beyond_the_tokens_asked_for() -> None:
    table = RequestTable(2, 64)
    driver = RunDriver(5)
    request = driver.submit(PROMPT, 4)
    while not (driver.loop.in_flight and driver.loop.in_flight[0].batch.chained.any()):
        driver.step()
        driver.loop.turn(driver.now)
    scheduled = driver.loop.in_flight[0]
    fresh = np.ones(1, np.bool_)
    result = StepResult(scheduled.step, np.arange(6, dtype=np.int32), counts=np.array([6], np.int32))
    assert result.counts is not None
    runs = cut_runs(scheduled, result, result.counts, fresh, driver.loop.table)
    assert runs.counts.tolist() == [3]
    assert runs.tokens.tolist() == [0, 1, 2]
    assert runs.drawn.tolist() == [True] * 3 + [False] * 3
    assert runs.ends.tolist() == [len(PROMPT) + 3]
    assert len(table) == 0
    assert request in driver.loop.table.row_of


def random_run(seed: int, pacing: str, mixed: bool) -> RunDriver:
    """Arrivals, aborts, stop strings and lost steps in a small pool."""
    source = random.Random(seed)
    driver = RunDriver(None, seed, pacing=pacing, mixed=mixed, num_pages=20, max_context=60, max_running=4, lookahead=4)
    waiting = [[source.randrange(3) for _ in range(source.randrange(1, 30))] for _ in range(12)]
    driver.ghost.fail_at = {source.randrange(5, 20)}
    prompts: dict[int, list[int]] = {}
    while True:
        if waiting and source.random() < 0.6:
            prompt = waiting.pop()
            stops = tuple(source.sample(range(256), 8))
            prompts[driver.submit(prompt, source.randrange(1, 25), stop_token_ids=stops)] = prompt
        live = [request for request in driver.output_of if request not in driver.ending_of]
        said = [request for request in live if len(driver.output_of[request]) > 1]
        if live and source.random() < 0.05:
            driver.intake.deliver(Abort((source.choice(live),)), driver.now)
        elif said and source.random() < 0.05:
            driver.intake.deliver(Finish(source.choice(said), 1), driver.now)
        if not driver.step() and not waiting:
            break
    for request, prompt in prompts.items():
        tokens = driver.output_of[request]
        assert tokens == list(expected(prompt, len(tokens)))
    return driver


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_random_runs_hold_every_property_and_replay(pacing: str, mixed: bool) -> None:
    lengths: set[int] = set()
    for seed in range(12):
        driver = random_run(seed, pacing, mixed)
        lengths.update(driver.run_lengths)
        records = driver.trace()
        monitor = Monitor()
        for record in records:
            assert not monitor.observe(record)
        assert not monitor.finish()
        replay(records)
    assert lengths >= {1, 2, 3, 4, 5, 6}


def test_runs_in_a_model_with_windows_keep_both_pools_right() -> None:
    driver = RunDriver(None, window=8, num_window_pages=40)
    requests = {driver.submit([*PROMPT, token] * 3, 30): [*PROMPT, token] * 3 for token in range(4)}
    driver.run()
    for request, prompt in requests.items():
        assert driver.output_of[request] == expected(prompt, 30)
    assert max(driver.run_lengths) == 6


def test_a_loop_that_does_not_cut_a_run_at_a_stop_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def blind(scheduled: ScheduledBatch, result: StepResult, counts: Int32s, fresh: Bools, table: RequestTable) -> Runs:
        stops = table.stop_tokens.copy()
        table.stop_tokens[:] = -1
        runs = cut_runs(scheduled, result, counts, fresh, table)
        table.stop_tokens[:] = stops
        return runs

    monkeypatch.setattr("pawl.loops.runs.cut_runs", blind)
    driver = RunDriver(5)
    driver.submit(PROMPT, 23, stop_token_ids=(expected(PROMPT, 23)[2],))
    driver.run()
    monitor = Monitor()
    found = [violation.property for record in driver.trace() for violation in monitor.observe(record)]
    assert "stop_semantics" in found


def test_a_loop_that_keeps_what_was_not_accepted_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pawl.loops.runs.trim", lambda *nothing: None)
    driver = RunDriver(1, pacing="lockstep")
    driver.submit(PROMPT, 23)
    with pytest.raises(Broken) as caught:
        driver.run()
    assert caught.value.property == "row_shape"


@pytest.mark.parametrize("change", [-1, 1])
def test_a_record_whose_counts_do_not_fit_its_tokens_is_malformed(change: int) -> None:
    driver = RunDriver(2)
    driver.submit(PROMPT, 23)
    driver.run()
    monitor = Monitor()
    found: list[str] = []
    for record in driver.trace():
        if isinstance(record, StepCommitted) and record.counts is not None:
            record = msgspec.structs.replace(record, counts=(int32s(record.counts) + np.int32(change)).tobytes())
        found += [violation.property for violation in monitor.observe(record)]
    assert found == ["well_formed"]


def foresee(loop: Loop, right: int | None, seed: int) -> None:
    """Give a loop the drafts of a `Prophet`."""
    planner = loop.planner
    assert isinstance(planner, UnifiedPlanner)
    assert planner.drafter is not None
    planner.drafter = loop.drafter = Prophet(planner.drafter, right, seed)


def replay(records: list[Record]) -> None:
    """By a loop whose drafts are as long."""
    assert isinstance(records[0], Started)
    again = Replay(records[0])
    foresee(again.loop, None, 0)
    for record in records[1:]:
        again.feed(record)
    again.finish()
    assert again.violations == []


def test_which_tokens_of_a_step_count_is_not_asked_of_runs_before_it() -> None:
    driver = RunDriver(5)
    driver.submit(PROMPT, 23)
    while driver.loop.committed is None or not driver.loop.committed.runs:
        driver.step()
    driver.submit(PROMPT[:5], 3)
    while driver.loop.committed.runs:
        driver.step()
    committed = driver.loop.committed
    assert len(driver.loop.wanted_tokens(committed)) == len(committed.sampled_rows)
