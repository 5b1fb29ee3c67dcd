"""The order of admission is beside what its policy prefers, and what it is offered beside arrivals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo, RequestTable
from pawl.loops.policy import POLICIES
from pawl.memory.arrays import Int32s
from pawl.testing.ordering import PolicyAsStated, watch_policy

PATHS = {0: (1, 2), 1: (), 2: (1, 3), 3: (1, 3, 4), 4: (5,)}
"""Row -> cached pages."""


class Waits:
    def __init__(self) -> None:
        self.table = RequestTable(8, 8)
        for request in range(8):
            info = RequestInfo(request, "", SamplingParameters(), "", 0.0)
            self.table.open(info, np.array([1], np.int32), 0, 0.0)

    def cached_pages(self, row: int) -> Int32s:
        return np.array(PATHS.get(row, ()), np.int32)


def seen(rows: Sequence[int] = tuple(PATHS)) -> PolicyAsStated:
    stated = PolicyAsStated(Waits())
    for row in rows:
        stated.cached_pages(row)
    return stated


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_is_as_it_is_stated(name: str) -> None:
    stated = PolicyAsStated(Waits())
    ordered = POLICIES[name](0).order(tuple(PATHS), stated)
    assert not list(stated.wrong(name, tuple(PATHS), ordered))


@pytest.mark.parametrize(
    ("name", "ordered", "words"),
    [
        ("lpm", (0, 3, 2, 4, 1), r"lpm puts row 0, .* \(1, 2\) .* before row 3 with \(1, 3, 4\)"),
        ("lpm", (3, 2, 0, 4, 1), "lpm puts row 2, .* before row 0"),
        ("dfs-weight", (1, 4, 2, 3, 0), r"dfs-weight puts row 4, .* before row 2"),
        ("dfs-weight", (1, 0, 2, 3, 4), r"dfs-weight puts row 0, .* before row 2"),
        ("dfs-weight", (1, 3, 2, 0, 4), r"dfs-weight puts row 3, .* before row 2"),
        ("dfs-weight", (2, 3, 0, 4, 1), r"dfs-weight puts row 4, .* before row 1"),
        ("fcfs", (1, 0), ""),
    ],
)
def test_another_order_is_found(name: str, ordered: Sequence[int], words: str) -> None:
    found = list(seen().wrong(name, tuple(PATHS), ordered))
    assert bool(found) == bool(words)
    assert not words or re.search(words, found[0])


def test_who_is_offered_in_another_order_than_they_came_is_found() -> None:
    assert "came in another order" in next(seen().wrong("fcfs", (0, 2, 1), (0, 2, 1)))


def test_the_policy_of_a_loop_is_watched() -> None:
    class Planner:
        admission: Any

    class Holder:
        planner: Any = Planner()

    loop: Any = Holder()
    loop.planner.admission = Holder()
    loop.planner.admission.policy = policy = POLICIES["lpm"](0)
    told: list[str] = []
    policy.order = lambda rows, waiting: [waiting.cached_pages(row) for row in rows] and list(rows)  # type: ignore[method-assign]
    watch_policy(loop, lambda name, text, request: told.append(name))
    assert policy.order(tuple(PATHS), Waits()) == list(PATHS)
    assert told == ["policy_as_stated"]
