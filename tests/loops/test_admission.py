"""Who is admitted with whom, and who waits for what another computes."""

from __future__ import annotations

import pytest

from tests.loops.driver import Driver


@pytest.mark.parametrize(("length", "together"), [(3, True), (4, True), (5, False)])
def test_a_request_waits_for_a_page_that_another_computes_only_if_it_can_use_it(length: int, together: bool) -> None:
    """A page is four tokens, and the last token of a prompt is always computed."""
    driver = Driver()
    prompt = list(range(length))
    for _ in range(2):
        driver.submit(prompt, 4)
    driver.intake.turn(driver.now)
    assert (len(driver.launched[0].rows) == 2) == together
