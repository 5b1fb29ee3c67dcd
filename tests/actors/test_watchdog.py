"""The watchdog, driven by hand."""

from __future__ import annotations

import pytest

from pawl.actors.messages.control import Heartbeat, Progress, Stalled
from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.manual import ManualContext, Sent
from pawl.actors.watchdog import Watchdog


def watched(interval_s: float = 1.0, stall_s: float = 5.0) -> tuple[Watchdog, ManualContext]:
    watchdog = Watchdog(interval_s, stall_s)
    return watchdog, ManualContext(watchdog, "watchdog")


def progress(ticket: int, oldest_launch_s: float | None = None) -> Progress:
    in_flight = 0 if oldest_launch_s is None else 1
    return Progress(ticket=ticket, step=7, in_flight=in_flight, oldest_launch_s=oldest_launch_s, idle=in_flight == 0)


def reports(context: ManualContext) -> list[float]:
    return [sent.message.seconds for sent in context.take_sent() if isinstance(sent.message, Stalled)]


def test_a_loop_that_answers_is_asked_once_an_interval_and_reported_never() -> None:
    watchdog, context = watched()
    for ticket in range(1, 21):
        assert context.take_sent() == [Sent("scheduler", Heartbeat(ticket=ticket), Lane.CONTROL)]
        watchdog.receive(progress(ticket, oldest_launch_s=0.2))
        context.advance(1.0)


def test_silence_is_a_stall_after_stall_s_and_not_before() -> None:
    _, context = watched()
    context.advance(4.5)
    assert reports(context) == []
    context.advance(2.0)
    assert reports(context) == [5.0, 6.0]


def test_a_silent_loop_is_not_asked_again_and_again() -> None:
    _, context = watched()
    context.advance(30.0)
    assert sum(isinstance(sent.message, Heartbeat) for sent in context.take_sent()) == 1


def test_a_step_that_never_comes_back_is_a_stall_though_the_scheduler_answers() -> None:
    watchdog, context = watched()
    watchdog.receive(progress(1, oldest_launch_s=4.9))
    assert reports(context) == []
    context.advance(1.0)
    watchdog.receive(progress(2, oldest_launch_s=5.9))
    assert reports(context) == [5.9]


@pytest.mark.parametrize("oldest_launch_s", [None, 0.1])
def test_recovery_is_told_once(oldest_launch_s: float | None) -> None:
    watchdog, context = watched()
    context.advance(5.0)
    assert reports(context) == [5.0]
    watchdog.receive(progress(1, oldest_launch_s))
    assert reports(context) == [0.0]
    context.advance(1.0)
    watchdog.receive(progress(2, oldest_launch_s))
    assert reports(context) == []


def test_reports_overtake_data_on_their_way_to_the_gateway() -> None:
    _, context = watched()
    context.advance(5.0)
    assert Sent("gateway", Stalled(seconds=5.0), Lane.CONTROL) in context.take_sent()


def test_an_answer_to_an_older_question_proves_nothing() -> None:
    watchdog, context = watched()
    watchdog.receive(progress(1))
    context.advance(1.0)
    watchdog.receive(progress(1))
    context.advance(5.0)
    assert reports(context) == [5.0]


def test_a_scheduler_that_is_gone_is_a_stall() -> None:
    watchdog = Watchdog(1.0, 5.0)
    context = ManualContext(watchdog, "watchdog")
    watchdog.receive(progress(1))
    context.gone.add("scheduler")
    context.advance(6.0)
    assert reports(context) == [5.0]


@pytest.mark.parametrize(("interval_s", "stall_s"), [(0.0, 1.0), (2.0, 1.0), (-1.0, 1.0)])
def test_intervals_that_make_no_sense_are_refused(interval_s: float, stall_s: float) -> None:
    with pytest.raises(ValueError, match="interval_s"):
        Watchdog(interval_s, stall_s)
