"""Orders about what the next steps are planned within."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from pawl.lifecycle.limits import MAX_DELAY_S, SETTABLE
from pawl.loops.intake import Intake, Order, Outcome

AtLeastOne = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class SetState(Order, frozen=True, kw_only=True, tag="set_state"):
    """Set some limits of the scheduler: all of them, or, where one may not be so, none."""

    max_running: Annotated[AtLeastOne | None, msgspec.Meta(description="requests computed at the same time")] = None
    prefill_chunk: Annotated[AtLeastOne | None, msgspec.Meta(description="prompt tokens computed in one step")] = None
    max_queued: Annotated[AtLeastOne | None, msgspec.Meta(description="requests that may wait")] = None

    def given(self) -> dict[str, Any]:
        """What is to be set."""
        return {name: value for name in SETTABLE if (value := getattr(self, name)) is not None}

    def apply(self, intake: Intake, now: float) -> Outcome:
        limits = intake.loop.limits
        wrong = limits.set(self.given(), intake.loop.memory.page_size)
        return Outcome(not wrong, wrong, {"updated": not wrong, "server_args": limits.in_force()})


class SlowDown(Order, frozen=True, tag="slow_down"):
    """Have every step wait, once it could be launched, before it is. For tests; null: steps wait no longer."""

    forward_sleep_time: Annotated[
        Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY_S)] | None,
        msgspec.Meta(description="seconds; null: not slowed down"),
    ]

    def apply(self, intake: Intake, now: float) -> Outcome:
        intake.loop.limits.now.step_delay_s = delay_s = self.forward_sleep_time or 0.0
        return Outcome(True, facts={"forward_sleep_time": delay_s or None})
