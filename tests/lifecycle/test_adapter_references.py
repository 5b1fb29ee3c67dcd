"""What `adapter_references` cannot know it does not report."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from pawl.lifecycle.machines.adapter import AdapterEvent
from pawl.lifecycle.properties.adapters import AdapterReferences
from pawl.lifecycle.properties.monitor import Monitor
from tests.lifecycle.canaries_adapters import _READY, PINNED, moves
from tests.lifecycle.canaries_shared import planted

FREE = msgspec.structs.replace(PINNED, fields=PINNED.fields | {"pinned": False})


@pytest.mark.parametrize(
    ("orders", "words"),
    [
        ((FREE,), ["evicted: adapter 2 ('a') makes way, and adapter 1 was used a longer time ago"]),
        ((FREE, PINNED), []),
        ((PINNED, FREE, PINNED), []),
    ],
)
def test_one_that_may_be_pinned_is_not_said_to_be_the_next_to_make_way(
    orders: tuple[object, ...], words: list[str]
) -> None:
    later = moves(*_READY, AdapterEvent.EVICTED, number=2, slot=2)
    monitor = Monitor([AdapterReferences()])
    for record in planted("commit 2", *orders, *moves(*_READY), *later):  # type: ignore[arg-type]
        monitor.observe(record)
    assert [violation.explanation for violation in monitor.violations] == words


def test_an_adapter_is_at_work_in_any_step_that_is_in_flight() -> None:
    submissions = [SimpleNamespace(namespace=namespace) for namespace in ("", "adapter=2.a", "")]
    history: Any = SimpleNamespace(
        open={},
        working=np.zeros(3, np.bool_),
        in_flight={step: SimpleNamespace(rows=np.array([step])) for step in range(3)},
        submissions=submissions,
    )
    assert AdapterReferences()._rows(2, history, live=False) == [1]
