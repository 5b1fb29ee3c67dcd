"""Orders of admission."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from pawl.gpu.ghost.oracle import expected
from pawl.loops.policy import POLICIES
from tests.loops.driver import Driver
from tests.loops.test_loop import prompts


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy_serves_everyone(policy: str) -> None:
    driver = Driver(policy=policy, max_running=3, num_pages=40)
    requests = {driver.submit(p, 6, priority=i % 3): p for i, p in enumerate(prompts(15, 30, shared=16))}
    driver.run()
    for request, prompt in requests.items():
        assert driver.output_of[request] == expected(prompt, 6)


def test_priority_runs_the_larger_first() -> None:
    driver = Driver(policy="priority", max_running=1)
    low = driver.submit(prompts(1, 8, 1)[0], 4, priority=1)
    high = driver.submit(prompts(1, 8, 2)[0], 4, priority=5)
    driver.run()
    assert list(driver.ending_of) == [high, low]


def test_lof_runs_the_longest_output_first_and_equal_ones_as_they_came() -> None:
    driver = Driver(policy="lof", max_running=1)
    short, long, as_long = (driver.submit(prompts(1, 8, seed)[0], wanted) for seed, wanted in ((1, 2), (2, 6), (3, 6)))
    driver.run()
    assert list(driver.ending_of) == [long, as_long, short]


class Cached:
    """Requests that wait, by row, with the pages that the cache has of them."""

    def __init__(self, *pages: Sequence[int]) -> None:
        self._pages = pages

    def cached_pages(self, row: int) -> Any:
        return np.array(self._pages[row], np.int32)


@pytest.mark.parametrize(
    ("policy", "order"),
    [("lpm", [3, 1, 2, 4, 0]), ("dfs-weight", [0, 1, 3, 4, 2])],
    ids=["most of it cached", "neighbours in the tree together, those of most first"],
)
def test_what_is_cached_of_a_request_says_when_it_runs(policy: str, order: list[int]) -> None:
    waiting: Any = Cached([], [1, 2], [5, 6], [1, 2, 3], [1, 7])
    assert list(POLICIES[policy](0).order(range(5), waiting)) == order
