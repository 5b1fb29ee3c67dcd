"""The watchdog, driven by hand."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from pawl.actors.messages.control import Heartbeat, Pulse, Stalled
from pawl.actors.runtime.actor import Lane
from pawl.actors.scheduler import HEARTBEAT_S
from pawl.actors.simulation.manual import ManualContext, Sent
from pawl.actors.watchdog import OLD_STEP_S, PULSE_S, SILENCE_S, Tick, Watchdog


def watched(interval_s: float = 1.0, stall_s: float = 5.0) -> tuple[Watchdog, ManualContext]:
    watchdog = Watchdog(interval_s, stall_s)
    return watchdog, ManualContext(watchdog, "watchdog")


def told(context: ManualContext) -> list[Stalled]:
    return [sent.message for sent in context.take_sent() if isinstance(sent.message, Stalled)]


def reports(context: ManualContext) -> list[float]:
    """Seconds of those that are a stall."""
    return [message.seconds for message in told(context) if message.seconds]


def test_while_heartbeats_come_nobody_is_told_anything() -> None:
    watchdog, context = watched()
    for _ in range(20):
        watchdog.receive(Heartbeat(0.2))
        context.advance(HEARTBEAT_S)
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
    assert told(context) == [Stalled(0.0)]
    context.advance(HEARTBEAT_S)
    watchdog.receive(Heartbeat(oldest_launch_s))
    assert told(context) == []


def test_reports_overtake_data_on_their_way_to_the_gateway() -> None:
    _, context = watched()
    context.advance(5.0)
    assert Sent("gateway", Stalled(5.0, silent_s=5.0), Lane.CONTROL) in context.take_sent()


@pytest.mark.parametrize(("interval_s", "stall_s"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_intervals_that_make_no_sense_are_refused(interval_s: float, stall_s: float) -> None:
    with pytest.raises(ValueError, match="interval_s"):
        Watchdog(interval_s, stall_s)


def test_a_step_that_is_old_is_told_long_before_it_is_a_stall_and_so_is_its_end() -> None:
    watchdog, context = watched()
    watchdog.receive(Heartbeat(0.75))
    assert told(context) == [Stalled(0.0, oldest_step_s=0.75)]
    watchdog.receive(Heartbeat(0.1))
    assert told(context) == [Stalled(0.0)]
    watchdog.receive(Heartbeat(0.1))
    assert told(context) == []


def test_a_step_is_old_from_its_half_second_on_and_silence_is_told_from_its_own_on() -> None:
    watchdog, context = watched()
    watchdog.receive(Heartbeat(OLD_STEP_S - 0.01))
    assert told(context) == []
    watchdog.receive(Heartbeat(OLD_STEP_S))
    assert told(context) == [Stalled(0.0, oldest_step_s=OLD_STEP_S)]
    context.time_s += SILENCE_S - 0.01
    watchdog.receive(Tick())
    assert told(context) == []
    context.time_s = SILENCE_S
    watchdog.receive(Tick())
    assert told(context) == [Stalled(0.0, oldest_step_s=OLD_STEP_S, silent_s=SILENCE_S)]


def test_a_silent_scheduler_is_told_before_it_is_a_stall_with_the_step_it_was_at() -> None:
    watchdog, context = watched()
    watchdog.receive(Heartbeat(0.6))
    context.take_sent()
    context.advance(1.0)
    assert told(context) == [Stalled(0.0, oldest_step_s=0.6, silent_s=1.0)]


class EventLoop:
    """One that turns until it is told not to; pulses are handled at once."""

    def __init__(self) -> None:
        self.watchdog = Watchdog(1.0, 1000.0, turned_at=lambda: self.turned_at)
        self.turned_at: float | None = None
        self.context = ManualContext(self.watchdog, "watchdog")

    def turn(self, seconds: float, frozen: bool = False) -> list[Pulse]:
        """The pulses of this time, whose handling a frozen loop leaves undone."""
        pulses: list[Pulse] = []
        for _ in range(round(seconds / PULSE_S)):
            self.context.advance(PULSE_S)
            pulses += [sent.message for sent in self.context.take_sent() if isinstance(sent.message, Pulse)]
            if not frozen:
                self.turned_at = self.context.now()
        return pulses


def test_a_loop_that_turns_is_not_said_to_stand() -> None:
    loop = EventLoop()
    with capture_logs() as logs:
        assert len(loop.turn(10.0)) == 1 + 40
    assert logs == []


def test_a_frozen_event_loop_is_said_within_a_second_and_once_more_when_it_turns_again() -> None:
    loop = EventLoop()
    loop.turn(2.0)
    with capture_logs() as logs:
        loop.turn(0.75, frozen=True)
        assert [line["log_level"] for line in logs] == ["error"]
        assert "stands still" in logs[0]["event"]
        # One pulse is on its way already; a loop that stands gets no more of them.
        assert loop.turn(20.0, frozen=True) == []
        assert len(logs) == 1
        loop.turned_at = loop.context.now()
        assert len(loop.turn(1.0)) == 4
    assert [line["event"] for line in logs[1:]] == ["the event loop turns again"]
    assert logs[1]["seconds"] == pytest.approx(20.75)
