"""Workloads in which prompts are computed elsewhere, and what is asked of both sides at a moment of silence."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from pawl.loops.policy import POLICIES
from pawl.memory.prefix.select import CACHES
from pawl.testing import apart, explore_workload

SEEDS = 60


def test_prompts_are_computed_elsewhere() -> None:
    reached: Counter[str] = Counter()
    for seed in range(6):
        reached.update(explore_workload(apart(seed), "fair", 1).reached.keys())
    assert reached["page handed over"] >= 4, reached


def test_clients_leave_and_replicas_are_processes_in_some() -> None:
    drawn = [apart(seed) for seed in range(SEEDS)]
    assert SEEDS / 4 < sum(each.processes for each in drawn) < SEEDS * 3 / 4
    assert sum(any(arrival.leaves_after == 0 for arrival in each.arrivals) for each in drawn) > SEEDS / 4
    assert {each.shape.prefillers for each in drawn} == {1, 2}
    assert {each.shape.replicas for each in drawn} == {1, 2}


@pytest.mark.parametrize(
    "fixed", [{"cache": CACHES[1]}, {"host_pages": 0}, {"prefillers": 0}, {"window": 3, "num_window_pages": 9}]
)
def test_a_server_that_has_no_prefill_replicas_gets_none(fixed: dict[str, Any]) -> None:
    assert [apart(seed, **fixed).shape.prefillers for seed in range(SEEDS)] == [0] * SEEDS


@pytest.mark.parametrize(
    "fixed", [{"page_size": 4}, {"replicas": 3}, {"policy": next(iter(POLICIES))}, {"num_pages": 3}]
)
def test_what_is_fixed_is_not_drawn(fixed: dict[str, Any]) -> None:
    for seed in range(SEEDS):
        shape = apart(seed, **fixed).shape
        assert {name: getattr(shape, name) for name in fixed} == fixed
        assert shape.prefill_chunk >= shape.page_size
