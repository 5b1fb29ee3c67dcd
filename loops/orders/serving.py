"""Orders to plan no steps for a while, and to go on."""

from __future__ import annotations

from pawl.lifecycle.machines.serving import SERVING, ServingEvent
from pawl.lifecycle.states import Cause
from pawl.loops.intake import Intake, Order, Outcome


class Pause(Order, frozen=True, tag="pause"):
    """Plan no more steps until the order to continue; requests that arrive meanwhile wait. Who runs keeps its memory,
    or with `retract` gives it back and starts again later from its known tokens. It is answered when the steps that
    are in flight have come back."""

    retract: bool = False

    def apply(self, intake: Intake, now: float) -> Outcome:
        loop = intake.loop
        loop.serving = SERVING.next(loop.serving, ServingEvent.PAUSE)
        if self.retract:
            for row in loop.queues.oldest_first().tolist():
                loop.requests.retract(row, Cause.PAUSED, now)
        return Outcome(True, "Generation paused successfully.", after_steps=True)


class Continue(Order, frozen=True, tag="continue"):
    """Plan steps again, however often the engine was paused."""

    def apply(self, intake: Intake, now: float) -> Outcome:
        loop = intake.loop
        loop.serving = SERVING.next(loop.serving, ServingEvent.CONTINUE)
        return Outcome(True, "Generation continued successfully.")
