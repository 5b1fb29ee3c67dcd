"""Outputs against an oracle: what the ghost must say is known beforehand, so a run in which it says something else is
reported by the properties that the request concerns, and by no other."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np
import pytest

from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.properties.outputs import (
    BatchIndependence,
    CacheHitEquivalence,
    Equivalence,
    RetractionTransparency,
    ScheduleEquivalence,
)
from pawl.lifecycle.records import Record, StepCommitted, Transition, int32s
from pawl.lifecycle.states import Event
from tests.loops.driver import CELLS
from tests.loops.test_replay import record_run

KINDS: tuple[type[Equivalence], ...] = (
    ScheduleEquivalence,
    RetractionTransparency,
    CacheHitEquivalence,
    BatchIndependence,
)


def judged(records: Iterable[Record]) -> Monitor:
    monitor = Monitor([make(expected) for make in KINDS])
    for record in records:
        monitor.observe(record)
    return monitor


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_every_output_of_a_run_is_the_expected_one(pacing: str, mixed: bool) -> None:
    for seed in range(6):
        records = record_run(seed, pacing, mixed)
        assert judged(records).violations == []


def concerned(records: list[Record], name: str) -> set[int]:
    """The requests that a property is about, found without it."""
    found = set()
    for record in records:
        if isinstance(record, Transition):
            retracted = name == "retraction_transparency" and record.event == Event.RETRACT
            warm = name == "cache_hit_equivalence" and bool(record.num_cached)
            found |= {record.request} if retracted or warm else set()
    return found


def _another_token(records: list[Record], request: int) -> list[Record]:
    """The last token drawn for `request` is another one."""
    history, found = History(), None
    for index, record in enumerate(records):
        history.advance(record)
        if isinstance(record, StepCommitted):
            step = history.step
            of_request = (step.requests == request)[step.samples] & history.committed.drew[step.samples]
            for place in np.flatnonzero(of_request).tolist():
                found = index, place
    assert found is not None
    committed = records[found[0]]
    assert isinstance(committed, StepCommitted)
    tokens = int32s(committed.tokens).copy()
    tokens[found[1]] += 1
    changed = msgspec.structs.replace(committed, tokens=tokens.tobytes())
    return [*records[: found[0]], changed, *records[found[0] + 1 :]]


def _with_output(records: list[Record]) -> set[int]:
    """Requests all of whose output counts, and is not empty."""
    history, found = History(), set()
    for record in records:
        history.advance(record)
        if isinstance(record, Transition) and record.event == Event.FINISH and record.num_output:
            found |= {record.request} if record.num_output == history.num_output[record.row] else set()
    return found


@pytest.mark.parametrize("name", ["retraction_transparency", "cache_hit_equivalence"])
def test_another_token_is_reported_only_where_the_request_concerns_the_property(name: str) -> None:
    told = spared = 0
    for seed in range(4):
        records = record_run(seed)
        about = concerned(records, name)
        for request in sorted(_with_output(records)):
            names = {each.property for each in judged(_another_token(records, request)).violations}
            assert "schedule_equivalence" in names
            assert (name in names) == (request in about)
            told += request in about
            spared += request not in about
    assert told
    assert spared
