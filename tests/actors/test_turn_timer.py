"""The timer of a step that waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pawl.actors.simulation.manual import ManualContext
from pawl.actors.turn_timer import TurnTimer


def test_a_step_that_is_due_at_another_time_has_one_timer_and_the_one_before_is_cancelled() -> None:
    actor: Any = SimpleNamespace(started=lambda: None)
    context = ManualContext(actor, "scheduler")
    timer = TurnTimer(actor)
    loop: Any = SimpleNamespace(limits=SimpleNamespace(due_at=9.0), queues=SimpleNamespace(idle=False))
    timer.settled(loop, 0.0)
    timer.settled(loop, 1.0)
    loop.limits.due_at = 3.0
    timer.settled(loop, 1.0)
    assert [each.cancelled for each in context.timers] == [True, False]
    loop.limits.due_at = 0.0  # steps wait no longer
    timer.settled(loop, 1.0)
    assert [each.cancelled for each in context.timers] == [True, True]
