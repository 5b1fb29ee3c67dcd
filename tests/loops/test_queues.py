"""Where requests stand when the loop begins again: those that had been admitted first, in their order."""

from __future__ import annotations

import pytest

from pawl.lifecycle.states import State
from pawl.loops.recovery import recover
from tests.loops.driver import Driver
from tests.loops.test_fetching import PROMPT, TierDriver


def test_after_a_failure_those_who_were_admitted_go_on_in_their_order_before_those_who_were_not() -> None:
    driver = Driver(max_running=2)
    requests = [driver.submit([number, 2, 3], 8) for number in range(4)]
    driver.step()
    driver.step()
    recover(driver.loop, "OSError at worker", driver.now)
    queues = driver.loop.queues
    assert [driver.request_of[row] for row in queues.retracted] == requests[:2]
    assert [driver.request_of[row] for row in queues.waiting] == requests[2:]
    assert queues.prefilling == {}
    assert len(queues.decoding) == 0


@pytest.mark.parametrize(("state", "place"), [(State.DECODING, "waits"), (State.QUEUED, "runs")])
@pytest.mark.parametrize("which", [0, 1])
def test_whoever_stands_where_its_state_does_not_allow_it_is_found(state: State, place: str, which: int) -> None:
    driver = Driver(max_running=2)
    for number in range(4):
        driver.submit([number, 2, 3], 8)
    driver.step()
    queues = driver.loop.queues
    rows = [*queues.waiting] if place == "waits" else [*queues.prefilling, *queues.decoding.tolist()]
    everybody = [*queues.waiting, *queues.prefilling, *queues.decoding.tolist()]
    queues.check(everybody)
    driver.loop.table.state[rows[which]] = state
    with pytest.raises(AssertionError, match=f"row {rows[which]} {place} in state {state.name}"):
        queues.check(everybody)


def test_all_who_wait_are_looked_at_for_pages_below_in_one_turn() -> None:
    driver, other = TierDriver(num_pages=64), PROMPT[::-1]
    for prompt in (PROMPT, other):
        driver.know(prompt)
        driver.submit(prompt, 4)
    driver.intake.turn(driver.now)
    assert [len(order.pages) for order in driver.fetches] == [10, 10]
