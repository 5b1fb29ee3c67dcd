"""Workloads of orders while replicas come and go, and of a session with many turns: what is wrong there shows soon."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pawl.actors.control import row_of
from pawl.testing import Workload, conversing, explore_workload, steering


@pytest.mark.parametrize("maker", [steering, conversing])
@pytest.mark.parametrize(
    "fixed", [{"prefill_chunk": 1}, {"page_size": 4}, {"num_pages": 3}, {"max_running": 1}, {"replicas": 2}, {}]
)
def test_it_takes_what_is_fixed(maker: Callable[..., Workload], fixed: dict[str, Any]) -> None:
    workload = maker(11, **fixed)
    workload.shape.check()
    assert fixed.items() <= {name: getattr(workload.shape, name) for name in fixed}.items()
    assert explore_workload(workload, "fair", 1, shrink=False).found is None


def test_orders_that_last_come_several_at_a_time_while_replicas_are_started() -> None:
    drawn = [steering(seed) for seed in range(60)]
    names = [[row_of(control.body).name for control in workload.controls] for workload in drawn]
    seen = Counter(name for each in names for name in set(each))
    assert all(seen[name] >= 6 for name in ("set-state", "slow-down", "pause", "update-weights", "load-adapter"))
    assert sum(each.count("set-state") > 1 for each in names) >= 6
    assert sum(workload.shape.max_replicas > workload.shape.replicas for workload in drawn) >= 30


def test_turns_go_on_from_each_other_in_every_way() -> None:
    turns = [turn for seed in range(60) for turn in conversing(seed).arrivals]
    for has in ("turn_of", "offset", "replace", "drop_previous_output", "at_s", "after_tokens", "leaves_after"):
        assert sum(bool(getattr(turn, has)) for turn in turns) >= 12, has
