"""What the loop tells the world: launched steps, outputs, endings, violations."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.states import Cause, State
from pawl.lifecycle.step import StepResult
from pawl.loops.batch import ScheduledBatch
from pawl.memory.arrays import Indices, Int32s
from pawl.memory.violation import MemoryViolation


class Ending(NamedTuple):
    """A request's one terminal event."""

    row: int
    info: RequestInfo
    state: State
    cause: Cause
    num_prompt: int
    num_output: int
    num_drafted: int
    num_accepted: int
    message: str = ""
    matched: int | None = None


class Effects(Protocol):
    """Where the loop's decisions go."""

    def opened(self, row: int, info: RequestInfo, tokens: Int32s) -> None:
        """A request was given `row`. Comes before everything else about it."""

    def launch(self, scheduled: ScheduledBatch) -> None:
        """Send the step to every rank."""

    def output(self, rows: Indices, tokens: Int32s, scheduled: ScheduledBatch, result: StepResult) -> None:
        """Tokens of one committed step; `rows` are those that are still wanted."""

    def ended(self, ending: Ending) -> None:
        """A request had its terminal event. Comes after its last output."""

    def violated(self, violation: MemoryViolation) -> None:
        """A property does not hold: a defect of the engine, to be counted and told; the engine goes on."""
