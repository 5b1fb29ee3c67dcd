"""The loop's own records satisfy every property, whatever happens to its requests and its worker."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pawl.gpu.ghost.runner import Ghost, PlannedFailure
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.properties.limits import LimitsHold
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import (
    STOPPED,
    Delivered,
    Record,
    Started,
    StepCommitted,
    StepRolledBack,
    Transition,
    uint8s,
)
from pawl.lifecycle.states import Cause, Event, State
from pawl.lifecycle.step import StepBatch, StepResult
from pawl.testing.books import open_books
from tests.lifecycle.story import Segment, Story, replies_of, write
from tests.loops.driver import CELLS, Driver
from tests.loops.test_replay import record_run


class FaultyGhost(Ghost):
    """Loses one step in `interval`."""

    source: random.Random
    interval: int

    def launch(self, batch: StepBatch) -> StepResult:
        if self.interval and not self.source.randrange(self.interval):
            raise PlannedFailure(batch.step)
        return super().launch(batch)


def run(seed: int, pacing: str, mixed: bool, num_pages: int, policy: str, interval: int) -> list[Record]:
    """A run in which requests come, are aborted and stopped while the loop turns; all it recorded."""
    source = random.Random(seed)
    driver = Driver(
        pacing=pacing, mixed=mixed, num_pages=num_pages, max_context=96, policy=policy, lookahead=source.choice([2, 64])
    )
    driver.ghost.__class__ = FaultyGhost
    assert isinstance(driver.ghost, FaultyGhost)
    driver.ghost.source, driver.ghost.interval = source, interval
    shared = [source.randrange(50) for _ in range(24)]
    requests = [0]
    for _ in range(source.randrange(20, 80)):
        match source.randrange(10):
            case 0 | 1 | 2 | 3:
                prompt = shared[: source.randrange(25)] + [source.randrange(50) for _ in range(source.randrange(1, 20))]
                stops = tuple(source.sample(range(256), 2))
                requests.append(driver.submit(prompt, source.choice([0, 1, 5, 30, 60]), stop_token_ids=stops))
            case 4:
                driver.loop.requests.abort(source.choice(requests), Cause.CLIENT, driver.now)
            case 5:
                request = source.choice(requests)
                num_output = len(driver.output_of.get(request, ()))
                if num_output:
                    driver.loop.requests.finish(request, source.randrange(1, num_output + 1), driver.now)
            case _:
                driver.step()
    driver.run()
    driver.loop.journal.closed(STOPPED, driver.loop.counters, 0, driver.loop.memory.pages)
    started = Started(
        version="0",
        model="ghost",
        config={"backend": "ghost", "loop": msgspec.to_builtins(driver.config)},
        num_pages=num_pages,
        page_size=driver.config.page_size,
        num_slots=driver.config.max_running,
        seed=driver.config.seed,
        time=0.0,
        wall=0.0,
    )
    return [started, *driver.records]  # type: ignore[list-item]  # the driver keeps them as objects


def violations(records: list[Record]) -> list[str]:
    monitor = Monitor()
    for record in records:
        monitor.observe(record)
    monitor.finish()
    return [
        f"{each.property} at {each.record}, request {each.request}: {each.explanation}" for each in monitor.violations
    ]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    cell=st.sampled_from(CELLS),
    num_pages=st.sampled_from([24, 40, 64]),
    policy=st.sampled_from(["fcfs", "lpm", "dfs-weight"]),
    interval=st.sampled_from([0, 0, 20, 5]),
)
def test_no_run_of_the_loop_violates_a_property(
    seed: int, cell: tuple[str, bool], num_pages: int, policy: str, interval: int
) -> None:
    assert violations(run(seed, *cell, num_pages, policy, interval)) == []


def test_such_runs_reach_what_the_properties_are_about() -> None:
    reached: set[object] = set()
    for seed in range(30):
        for record in run(seed, "overlap", bool(seed % 2), 24, "lpm", (0, 40)[seed % 2]):
            match record:
                case Transition():
                    reached.add((record.event, record.cause))
                    reached.update(["a prefix hit"] if record.num_cached else [])
                case StepCommitted() if Event.STALE_TOKEN in uint8s(record.events):
                    reached.add("a stale token")
                case StepRolledBack():
                    reached.add("a rollback")
    assert reached >= {
        "a prefix hit",
        "a stale token",
        "a rollback",
        (Event.RETRACT, Cause.MEMORY),
        (Event.RETRACT, Cause.STEP_LOST),
        (Event.FINISH, Cause.LENGTH),
        (Event.FINISH, Cause.STOP_STRING),
        (Event.ABORT, Cause.CLIENT),
    }


@pytest.mark.parametrize("interval", [0, 10])
def test_a_recorded_run_passes_its_audit(tmp_path: Path, interval: int) -> None:
    records = run(3, "overlap", True, 40, "fcfs", interval)
    report = audit(write(tmp_path, [*records, *replies_of(records)], block=100))
    assert report.verdict == Verdict.PASS, report.text()
    assert report.num_requests > 3


KEPT = {
    "AbortIsTotal._ended": "who has ended, for an abort that comes later",
    "AdmissionIsMonotone._begun": "by row, until another one has it",
    "AdmissionOrder._order": "those that have gone are passed over when they come up",
    "AdmissionOrder._prompts": "by row, until another one has it",
    "CacheView.removed": "of the last record",
    "CacheView.stored": "of the last record",
    **dict.fromkeys(("CacheView.namespace", "CacheView._children", "CacheView._parent"), "what is cached"),
    "Equals._seen": "what equal requests got, for those to come",
    "History._retracted": "by row, until another one has it",
    "History._warm": "by row, until another one has it",
    "History.submissions": "by row, until another one has it",
    "Incarnation._seen": "numbers do not come again",
    "LegalLifecycle._holder": "by row, until another one has it",
    "PageUse._fences": "by page",
    "PageUse.fresh": "of the last record",
    "PageUse.released": "of the last record",
    "Replies._answered": "who was answered is answered once",
    "StopSemantics._stoppable": "by row, until another one has it",
    "StreamEqualsResult._came": "until its client has been told its end",
    "StreamEqualsResult._cut": "for a reply that comes later",
    "StreamEqualsResult._told": "for an order that comes later",
}
"""Class and attribute of what a judge keeps of requests that have ended -> why."""


@pytest.mark.parametrize("lossy", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_judge_keeps_nothing_else_of_requests_that_have_ended(seed: int, lossy: bool) -> None:
    monitor = Monitor()
    records = record_run(seed)
    if lossy:  # also of those whose first admission was undone, while they lived or after
        records = run(seed, "overlap", True, 30, "fcfs", 3)
        records += replies_of(records)
    for record in records:
        monitor.observe(record)
    monitor.finish()
    judges = {each.name: each for each in monitor.properties}
    left = {line.partition(" ")[0]: line for line in open_books({**judges, "history": monitor.history})}
    assert [line for book, line in left.items() if book not in KEPT] == []


def test_who_has_ended_before_its_first_step_was_lost_is_kept_by_no_judge() -> None:
    story = Story()
    story.start()
    for request in (1, 2):
        story.submit(request, request - 1, 4, 3)
        story.admit(request, request - 1)
    story.plan(1, *(Segment(row, 0, 4, pages=((0, row),)) for row in (0, 1)))
    story.add(Delivered("abort", {"requests": [1]}, 0, story.now()))
    story.move(1, 0, State.PREFILLING, Event.ABORT, State.ABORTED, Cause.CLIENT, num_output=0)
    story.add(StepRolledBack(1, "the worker was lost", story.now()))
    monitor = Monitor()
    for record in story.records:
        assert monitor.observe(record) == ()
    (limits,) = (each for each in monitor.properties if isinstance(each, LimitsHold))
    assert (limits._waiting, limits._begun) == ({2}, set())
