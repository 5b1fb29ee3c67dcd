"""Who is admitted with whom, and who waits for what another computes."""

from __future__ import annotations

import pytest

from tests.loops.driver import CELLS, Driver


@pytest.mark.parametrize(("length", "together"), [(3, True), (4, True), (5, False)])
def test_a_request_waits_for_a_page_that_another_computes_only_if_it_can_use_it(length: int, together: bool) -> None:
    """A page is four tokens, and the last token of a prompt is always computed."""
    driver = Driver()
    prompt = list(range(length))
    for _ in range(2):
        driver.submit(prompt, 4)
    driver.intake.turn(driver.now)
    assert (len(driver.launched[0].rows) == 2) == together


def test_the_same_tokens_behind_other_pages_are_another_page() -> None:
    driver = Driver()
    first, second, same = [1] * 4, [2] * 4, [5] * 4
    for beginning in (first, second):
        driver.submit([*beginning, 0], 1)
    driver.run()
    for beginning in (first, second):
        driver.submit([*beginning, *same, 0], 1)
    driver.intake.turn(driver.now)
    assert len(driver.launched[0].rows) == 2, "neither waits: what they compute differs"


@pytest.mark.parametrize(("pacing", "mixed"), CELLS)
def test_an_admission_that_is_undone_waits_again_behind_those_that_came_before_it(pacing: str, mixed: bool) -> None:
    driver = Driver(pacing=pacing, mixed=mixed)
    begun, passed_over, other = [1] * 6, [1] * 7, [2] * 6
    requests = [driver.submit(prompt, 4) for prompt in (begun, passed_over, other)]
    driver.intake.turn(driver.now)
    step = driver.launched[0]
    assert len(step.rows) == 2, "one waits for a page that the first computes"
    driver.loop.failed(step.step, "lost", driver.now)
    driver.ghost.reset()
    driver.launched.clear()
    assert [driver.request_of[row] for row in driver.loop.queues.waiting] == requests
    driver.run()
