"""Where requests stand when the loop begins again: those that had been admitted first, in their order."""

from __future__ import annotations

from pawl.loops.recovery import recover
from tests.loops.driver import Driver


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
