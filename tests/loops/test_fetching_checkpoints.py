"""A loop that is restored while pages come up from a lower tier goes on as the one that it was."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pawl.gpu.ghost.oracle import expected
from pawl.loops.snapshot import restore, snapshot_of
from tests.loops.test_fetching import PROMPT, TierDriver, end_lease

OTHER, SHORT = PROMPT[::-1], PROMPT[20:]
ASKED = ((PROMPT, 4), (OTHER, 4), (OTHER, 5), (SHORT, 3))


def kept(driver: TierDriver) -> Any:
    """What a reader of its checkpoint gets."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(snapshot_of(driver.intake)))


def at_rest() -> tuple[TierDriver, list[int]]:
    """No step is in flight; of three fetches one was given up, two wait for another. And the requests of `ASKED`."""
    driver = TierDriver()
    for prompt in (PROMPT, OTHER, SHORT):
        driver.know(prompt)
    requests = [driver.submit(*ASKED[0])]
    assert not driver.step()
    end_lease(driver, requests[0], driver.fetches[0])
    driver.tiers.fetching._resume_at = 0.0
    requests += [driver.submit(*each) for each in ASKED[1:]]
    driver.step()
    with pytest.MonkeyPatch.context() as bubble:
        bubble.setattr(driver.intake, "turn", lambda now: None)
        while driver.loop.in_flight:
            driver.step()
    return driver, requests


def test_a_restored_loop_brings_waits_and_gives_back_as_the_first_one_would() -> None:
    (driver, requests), (twin, _) = at_rest(), at_rest()
    other = TierDriver()  # before the twin's worker and clients
    restore(other.intake, kept(driver))
    other.now, other.ghost, other.request_of, other.output_of = twin.now, twin.ghost, twin.request_of, twin.output_of
    assert kept(other) == kept(driver)
    given_up, shared, short = driver.fetches
    for each in (driver, other):
        each.tiers.fetching.check()
        assert each.tiers.fetching.statistics()["overdue"] == 1
        each.bring(shared, OTHER, 7)
        each.tiers.fetching.expired(short.ticket, each.now)
        each.tiers.fetching.filled(given_up.ticket, 3, each.now)
        each.tiers.fetching.fenced(short.ticket, each.now)
        assert each.quarantined == 0
        each.run()
        each.loop.check_all()
    assert (driver.fences, other.fences) == ([given_up.ticket, short.ticket], [short.ticket])
    assert kept(other) == kept(driver)
    for request, (prompt, length) in zip(requests, ASKED, strict=True):
        assert other.output_of[request] == driver.output_of[request] == expected(prompt, length)


def test_a_restored_loop_fetches_nothing_while_the_first_one_would_not() -> None:
    driver = TierDriver()
    driver.know(PROMPT)
    request = driver.submit(PROMPT, 4)
    assert not driver.step()
    end_lease(driver, request, driver.fetches[0])
    while driver.loop.in_flight:
        driver.step()
    paused = driver.tiers.fetching._resume_at
    assert paused > driver.now
    other = TierDriver()
    restore(other.intake, kept(driver))
    assert other.tiers.fetching._resume_at == paused
