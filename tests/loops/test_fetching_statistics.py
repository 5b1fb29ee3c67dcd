"""Fetches that requests wait for, and those that nobody waits for any more, are counted apart."""

from __future__ import annotations

from operator import itemgetter

import pytest

from tests.loops.test_fetching import end_lease, fetching, lose_the_worker

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
