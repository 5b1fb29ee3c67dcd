"""The watchdog, driven by hand."""

from __future__ import annotations

import pytest

from pawl.actors.messages.control import Heartbeat, Stalled
from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.manual import ManualContext, Sent
from pawl.actors.watchdog import Watchdog


def watched(interval_s: float = 1.0, stall_s: float = 5.0) -> tuple[Watchdog, ManualContext]:
    watchdog = Watchdog(interval_s, stall_s)
    return watchdog, ManualContext(watchdog, "watchdog")


def reports(context: ManualContext) -> list[float]:
    return [sent.message.seconds for sent in context.take_sent() if isinstance(sent.message, Stalled)]


def test_while_heartbeats_come_nobody_is_told_anything() -> None:
    watchdog, context = watched()
    for _ in range(20):
        watchdog.receive(Heartbeat(0.2))
        context.advance(1.0)
    assert context.take_sent() == []


def test_silence_is_a_stall_after_stall_s_and_not_before() -> None:
    _, context = watched()
    context.advance(4.5)
    assert reports(context) == []
    context.advance(2.0)
    assert reports(context) == [5.0, 6.0]


def test_a_step_that_never_comes_back_is_a_stall_though_heartbeats_come() -> None:
    watchdog, context = watched()
    watchdog.receive(Heartbeat(4.9))
    assert reports(context) == []
    context.advance(1.0)
    watchdog.receive(Heartbeat(5.9))
    assert reports(context) == [5.9]


@pytest.mark.parametrize("oldest_launch_s", [None, 0.1])
def test_recovery_is_told_once(oldest_launch_s: float | None) -> None:
    watchdog, context = watched()
    context.advance(5.0)
    assert reports(context) == [5.0]
    watchdog.receive(Heartbeat(oldest_launch_s))
    assert reports(context) == [0.0]
    context.advance(1.0)
    watchdog.receive(Heartbeat(oldest_launch_s))
    assert reports(context) == []


def test_reports_overtake_data_on_their_way_to_the_gateway() -> None:
    _, context = watched()
    context.advance(5.0)
    assert Sent("gateway", Stalled(seconds=5.0), Lane.CONTROL) in context.take_sent()


@pytest.mark.parametrize(("interval_s", "stall_s"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_intervals_that_make_no_sense_are_refused(interval_s: float, stall_s: float) -> None:
    with pytest.raises(ValueError, match="interval_s"):
        Watchdog(interval_s, stall_s)
