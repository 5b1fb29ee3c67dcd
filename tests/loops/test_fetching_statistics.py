"""Fetches that requests wait for, and those that nobody waits for any more, are counted apart."""

from __future__ import annotations

from operator import itemgetter

import pytest

from pawl.lifecycle.properties.giving_way import AdmissionIsMonotone
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import DECODER, ENCODER, Checkpoint
from pawl.lifecycle.states import State
from pawl.loops.snapshot import checkpoint
from tests.loops.driver import first_record
from tests.loops.test_fetching import PAGE, PROMPT, TierDriver, end_lease, fetching, lose_the_worker

of = itemgetter("fetching", "abandoned")


@pytest.mark.parametrize("way_out", [end_lease, lose_the_worker])
@pytest.mark.parametrize("answer", ["filled", "fenced"])
def test_a_fetch_is_under_way_then_given_up_then_over(way_out: object, answer: str) -> None:
    driver, request, order = fetching()
    fetches = driver.tiers.fetching
    assert of(fetches.statistics()) == (1, 0)
    way_out(driver, request, order)  # type: ignore[operator]
    assert of(fetches.statistics()) == (0, 1)
    if answer == "filled":
        fetches.filled(order.ticket, 10, driver.now)
    else:
        fetches.fenced(order.ticket, driver.now)
    assert of(fetches.statistics()) == (0, 0)


def test_a_judge_that_begins_at_a_checkpoint_knows_of_every_fetch_that_is_under_way() -> None:
    driver = TierDriver()
    prompts = [PROMPT, PROMPT[::-1]]
    for prompt in prompts:
        driver.know(prompt)
    requests = [driver.submit(prompt, 4) for prompt in prompts]
    assert not driver.step()
    driver.loop.journal._started = first_record(driver.config, 0)
    checkpoint(driver.intake, driver.now)
    record = driver.records[-1]
    assert isinstance(record, Checkpoint)
    history, judge = History(), AdmissionIsMonotone()
    history.advance(DECODER.decode(ENCODER.encode([record]))[0])
    assert history.beginning is not None
    assert list(judge.begin(history.beginning, history)) == []
    assert judge._fetching == dict.fromkeys(requests, (len(PROMPT) - 1) // PAGE - 1)


def test_who_has_the_beginning_shares_the_fetch_of_what_comes_behind_it() -> None:
    driver = TierDriver()
    driver.submit(PROMPT[:5], 1)
    driver.run()  # the device has the first page now
    driver.know(PROMPT)
    one, other = driver.submit(PROMPT, 4), driver.submit([*PROMPT, 7], 4)
    driver.step()
    (order,) = driver.fetches
    assert len(order.keys) == 9
    assert [driver.state(each) for each in (one, other)] == [State.QUEUED_FETCHING] * 2
