"""An order about what computes: it tells of a loss that no step has."""

from __future__ import annotations

from pawl.loops.intake import Intake, Order
from pawl.loops.recovery import lose_runner


class RunnerGone(Order, frozen=True, tag="runner_gone"):
    """What computes was lost, and no step that the worker has can say so. One that is in flight will."""

    def apply(self, intake: Intake, now: float) -> None:
        if not intake.loop.in_flight:
            lose_runner(intake.loop, now)
