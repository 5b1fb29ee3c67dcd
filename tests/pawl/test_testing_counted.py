"""Every number that an engine counts is compared with what it stands for: one that is off by one is told."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import msgspec
import pytest

from pawl.actors.simulation.exploration import drive
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.simple import Fair
from pawl.lifecycle.records import Flushed
from pawl.lifecycle.states import Cause
from pawl.loops.orders.cache import FlushCache
from pawl.testing import Arrival, PropertyFailed, Workload
from pawl.testing.cluster import Cluster, cluster
from pawl.testing.counted import check_counted
from pawl.testing.workload import Control

SERVED = Workload(arrivals=tuple(Arrival(prompt=(97, 98), max_new_tokens=count) for count in (1, 3)))
ONE_LEAVES = Workload(arrivals=(*SERVED.arrivals, Arrival(prompt=(98,), max_new_tokens=8, leaves_after=1)))
OF_THE_LOOP = ("steps", "steps_lost", "drafts", "draft_tokens", "accepted_tokens")
OF_THE_GATEWAY = ("submitted", "prompt_tokens", "cached_tokens", "generated_tokens")


@cache
def ended(workload: Workload) -> Cluster:
    with silence():
        run = cluster(workload, Fair())
        drive(run)
    return run


def told(run: Cluster) -> str:
    with pytest.raises(PropertyFailed, match="observability_conservation") as failed:
        check_counted(run)
    return str(failed.value)


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("name", OF_THE_LOOP)
def test_a_number_of_the_loop_that_is_off_by_one_is_told(name: str, by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = ended(SERVED)
    counters = run.scheduler.loop.counters
    monkeypatch.setattr(counters, name, getattr(counters, name) + by)
    assert "replica 0 counts" in told(run)


@pytest.mark.parametrize("by", [1, -1])
@pytest.mark.parametrize("name", OF_THE_GATEWAY)
def test_a_number_of_the_gateway_that_is_off_by_one_is_told(
    name: str, by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ended(SERVED)
    totals = run.desk.totals
    monkeypatch.setattr(totals, name, getattr(totals, name) + by)
    assert "the gateway counts" in told(run)


def _by_the_loop(run: Cluster) -> None:
    counters = run.scheduler.loop.counters
    counters.by_cause = {Cause.STOP_STRING: counters.by_cause[Cause.LENGTH]}


def _by_the_gateway(run: Cluster) -> None:
    ended = run.desk.totals.ended
    ended[Cause.STOP_STRING] = ended.pop(Cause.LENGTH)


def _not_observed(run: Cluster) -> None:
    run.desk.requests.queue_time.counts = [0] * len(run.desk.requests.queue_time.counts)


@pytest.mark.parametrize("falsify", [_by_the_loop, _by_the_gateway, _not_observed])
def test_an_end_under_another_cause_and_an_admission_that_is_not_counted_are_told(
    falsify: Callable[[Cluster], None],
) -> None:
    ended.cache_clear()
    run = ended(SERVED)
    falsify(run)
    told(run)
    ended.cache_clear()


def test_who_hung_up_may_have_had_anything_and_the_others_are_counted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = ended(ONE_LEAVES)
    totals = run.desk.totals
    assert totals.ended.total() == 3
    assert totals.generated_tokens >= 4
    check_counted(run)
    monkeypatch.setattr(totals, "generated_tokens", 3)
    assert "output tokens as 3" in told(run)


def test_a_flush_that_is_not_recorded_is_told() -> None:
    run = ended(msgspec.structs.replace(SERVED, controls=(Control(body=FlushCache(1.0)),)))
    check_counted(run)
    records = run.replicas[0].trace.records
    assert [answer.ok for answer in run.desk.answers[0]] == [True]
    records[:] = [record for record in records if not isinstance(record, Flushed)]
    assert "counts flushes as 1, and 0 is true" in told(run)
    ended.cache_clear()
