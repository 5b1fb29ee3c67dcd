"""When nothing is fetched for a while: tiers that were late, to more than one request, are to catch up first."""

from __future__ import annotations

from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.states import State
from tests.loops.test_fetching import PROMPT, TierDriver

OTHERS = [[start, *PROMPT] for start in range(3)]
"""Prompts that share no page."""


def test_who_answers_late_is_waited_for_though_another_has_answered() -> None:
    driver = TierDriver(num_pages=128)
    for prompt in OTHERS:
        driver.know(prompt)
    late = [driver.submit(prompt, 2) for prompt in OTHERS[:2]]
    assert not driver.step()
    first, second = driver.fetches
    for order in (first, second):
        driver.tiers.fetching.expired(order.ticket, driver.now)
    driver.tiers.fetching.filled(first.ticket, 0, driver.now)
    alone = driver.submit(OTHERS[2], 2)
    driver.run()
    assert len(driver.fetches) == 2
    driver.tiers.fetching.filled(second.ticket, 0, driver.now)
    driver.loop.flush(driver.now)
    driver.know(OTHERS[2])
    driver.submit(OTHERS[2], 2)
    driver.step()
    assert len(driver.fetches) == 3
    for request, prompt in zip([*late, alone], OTHERS, strict=True):
        assert driver.output_of[request] == expected(prompt, 2)


def test_all_that_wait_for_one_fetch_go_on_without_it_when_its_lease_has_ended() -> None:
    driver = TierDriver(num_pages=128)
    driver.know(PROMPT)
    waiting = [driver.submit(PROMPT, count) for count in (2, 3, 4)]
    assert not driver.step()
    (order,) = driver.fetches
    assert {driver.state(request) for request in waiting} == {State.QUEUED_FETCHING}
    driver.tiers.fetching.expired(order.ticket, driver.now)
    assert {driver.state(request) for request in waiting} == {State.QUEUED}
    driver.tiers.fetching.fenced(order.ticket, driver.now)
    driver.run()
    assert [driver.output_of[request] for request in waiting] == [expected(PROMPT, count) for count in (2, 3, 4)]
