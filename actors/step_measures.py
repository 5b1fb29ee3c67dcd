"""Where the time of steps goes, and how many tokens they computed: for people; nothing is decided from it."""

from __future__ import annotations

from typing import Any

from pawl.actors.measures import STEP_BUCKETS_S, Histogram
from pawl.gpu.step_runner import RankState
from pawl.loops.batch import ScheduledBatch


class StepMeasures:
    """Of one scheduler, since its start. Times are seconds on its clock."""

    def __init__(self) -> None:
        self.receive_s = 0.0
        """Handling requests, orders and questions."""
        self.plan_s = 0.0
        """Deciding steps."""
        self.launch_s = 0.0
        """Sending them to the worker."""
        self.commit_s = 0.0
        """Applying their results."""
        self.durations = Histogram(STEP_BUCKETS_S)
        """From the launch of a step to its result."""
        self.prefill_tokens = 0
        """Positions of prompt chunks in committed steps; those of a request that starts again count again."""
        self.ranks: tuple[RankState, ...] = ()
        """After the newest step."""

    def planned(self, seconds: float, launching_before: float) -> None:
        """The loop has turned for so long, launches included; `launching_before`: the seconds of launches before it."""
        self.plan_s += seconds - (self.launch_s - launching_before)

    def committed(self, scheduled: ScheduledBatch | None, seconds: float, duration: float | None) -> None:
        """A step's result was applied, `seconds` long, `duration` after its launch."""
        self.commit_s += seconds
        if duration is not None:
            self.durations.observe(duration)
        if scheduled is not None:
            self.prefill_tokens += scheduled.num_prompt_tokens

    def facts(self) -> dict[str, Any]:
        """As `/server_info` shows them."""
        phases = {"receive": self.receive_s, "plan": self.plan_s, "launch": self.launch_s, "commit": self.commit_s}
        return {
            "phase_seconds": phases,
            "duration_seconds": self.durations.plain(),
            "prefill_tokens": self.prefill_tokens,
        }
