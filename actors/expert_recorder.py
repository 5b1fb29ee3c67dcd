"""The record of which experts tokens use: for the worker, which counts the tokens of its steps beside the runner.

A token is counted each time that a step computes it: prompts, output, drafts whether they are accepted or not, and
tokens that are computed again after a retraction.
"""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.gpu.profiler import WrongState
from pawl.gpu.step_runner import CountsExperts
from pawl.lifecycle.machines.experts import EXPERTS, Counting, CountingEvent
from pawl.lifecycle.step import StepBatch

NO_EXPERTS = "the model that is served has no experts"


class NoExperts(Exception):
    """There is nothing to count."""


class ExpertRecorder:
    """One record at a time."""

    def __init__(self, counter: CountsExperts | None) -> None:
        """`counter`: None for a model without experts."""
        self.phase = EXPERTS.start
        self._counter = counter
        self._num_tokens = 0
        self._num_failed = 0
        """Steps that have failed in the middle: of their tokens some layers may be counted."""
        self._any = False
        """There has been a start since the last record was taken."""

    @property
    def counter(self) -> CountsExperts:
        """Raises NoExperts."""
        if self._counter is None:
            raise NoExperts(NO_EXPERTS)
        return self._counter

    def start(self) -> None:
        """Count from nothing. Raises NoExperts, WrongState."""
        counter = self.counter
        if self.phase is Counting.RECORDING:
            raise WrongState("experts are recorded already: stop, or take what there is so far")
        self._num_tokens = self._num_failed = 0
        self._any = True
        self.phase = EXPERTS.next(self.phase, CountingEvent.START)
        counter.start()

    def stop(self) -> None:
        """Count no more. Raises NoExperts, WrongState."""
        counter = self.counter
        if self.phase is Counting.IDLE:
            raise WrongState("experts are not being recorded: start first")
        counter.stop()
        self.phase = EXPERTS.next(self.phase, CountingEvent.STOP)

    def take(self) -> dict[str, Any]:
        """What was counted since the start, or since it was taken last. Raises NoExperts, WrongState."""
        counter = self.counter
        if not self._any:
            raise WrongState("no experts have been recorded: start first")
        self.phase = EXPERTS.next(self.phase, CountingEvent.DUMP)
        record = {
            "num_tokens": self._num_tokens,
            "num_experts_per_token": counter.chosen,
            "layers_with_experts": [index for index, has in enumerate(counter.layers) if has],
            "failed_steps": self._num_failed,
            "logical_count": counter.take().tolist(),
        }
        self._num_tokens = self._num_failed = 0
        self._any = self.phase is Counting.RECORDING
        return record

    def computed(self, batch: StepBatch) -> None:
        """A step was launched."""
        if self.phase is Counting.RECORDING:
            self._num_tokens += int(batch.lengths.sum())

    def failed(self) -> None:
        """A step was launched, and failed."""
        self._num_failed += self.phase is Counting.RECORDING


def encoded(record: dict[str, Any]) -> bytes:
    """As a file."""
    return msgspec.json.encode(record)
