"""Orders of admission."""

from __future__ import annotations

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
