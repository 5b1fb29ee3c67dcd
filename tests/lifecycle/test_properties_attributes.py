"""A judge has all that it keeps from its beginning: whatever record is the first, at the start or at a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from pawl.lifecycle.properties.admission_order import AdmissionOrder
from pawl.lifecycle.properties.base import Property
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.monitor import PROPERTIES, Monitor
from pawl.lifecycle.records import Started
from tests.lifecycle.canaries import STORY
from tests.lifecycle.canaries_scarcity import computed_twice
from tests.loops.test_replay import record_run


@pytest.mark.parametrize("make", PROPERTIES)
def test_no_judge_gets_an_attribute_on_the_way(make: Callable[[], Property]) -> None:
    for records in (STORY.records, record_run(0), record_run(1, "pipeline")):
        judge = make()
        before = set(vars(judge))
        monitor = Monitor([judge])
        for record in records:
            monitor.observe(record)
        monitor.finish()
        assert set(vars(judge)) == before


def test_what_is_known_of_a_run_gets_none_either() -> None:
    history = History()
    before = set(vars(history))
    for record in record_run(0):
        history.advance(record)
    assert set(vars(history)) == before


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({"cache": "radix", "window": None}, True),
        ({"cache": "radix"}, True),
        ({"cache": "radix", "window": 8}, False),
        ({"cache": "none", "window": None}, False),
        ({"cache": "none", "window": 8}, False),
        ({}, False),
    ],
)
def test_what_somebody_else_computes_is_waited_for_only_where_all_of_it_can_be_shared(
    settings: dict[str, Any], wrong: bool
) -> None:
    started, *rest = computed_twice()
    assert isinstance(started, Started)
    loop = {"policy": "fcfs"} | settings
    monitor = Monitor([AdmissionOrder()])
    for record in (msgspec.structs.replace(started, config={"loop": loop}), *rest):
        monitor.observe(record)
    assert [violation.property for violation in monitor.violations] == ["admission_order"] * wrong
