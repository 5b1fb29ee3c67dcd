"""Orders about the prefix cache."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from pawl.lifecycle.machines.serving import Serving
from pawl.loops.intake import Intake, Order, Outcome

MAX_WAIT_S = 3600.0


class FlushCache(Order, frozen=True, tag="flush_cache", rename={"timeout_s": "timeout"}):
    """Empty the prefix cache. Loses no request: while any is live, it is refused, or waits for rest. While the engine
    is paused, requests may wait."""

    at_rest: ClassVar[bool] = True
    timeout_s: Annotated[
        float, msgspec.Meta(ge=0, le=MAX_WAIT_S, description="seconds to wait for rest; 0: now or not at all")
    ] = 0.0

    def apply(self, intake: Intake, now: float) -> Outcome:
        loop, queues = intake.loop, intake.loop.queues
        facts = {"waiting": queues.num_waiting, "running": queues.num_running, "in_flight": len(loop.in_flight)}
        facts |= {"paused": loop.serving is Serving.PAUSED, **intake.memory.facts}
        if loop.flush(now):
            return Outcome(True, "cache flushed", facts)
        return Outcome(False, "not flushed: requests are live", facts)
