"""Property `bounded_gaps`: prompts do not keep those waiting whose tokens come one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.limits import FollowedLimits
from pawl.lifecycle.records import Contained, Delivered, Started, StepCommitted, StepPlanned, StepRolledBack
from pawl.lifecycle.step_times import StepTimes


class _Settings(msgspec.Struct):
    """The settings of the loop that matter here."""

    page_size: int
    max_step_s: float | None = None


class BoundedGaps(Property):
    """Beside requests that decode, a step computes no more prompt tokens than fit into `max_step_s`, or into three
    quarters more than such a step takes without prompts, whichever is longer, by what steps have taken so far; or one
    page. For each request that waits and has not begun it is a quarter more, and three times as much more at the most.
    After 64 steps with prompts one without shows what requests that decode take alone."""

    name: ClassVar[str] = "bounded_gaps"

    def __init__(self) -> None:
        self._settings = _Settings(page_size=1)
        self._limits = FollowedLimits()
        self._times = StepTimes()

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._limits.begin(beginning)
        self._times = msgspec.structs.replace(beginning.limits.times, in_flight=[])
        return found

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        loop: Any = record.config.get("loop")
        try:
            self._settings = msgspec.convert(loop, _Settings)
        except msgspec.ValidationError:
            return ()
        self._limits.start(record)
        return ()

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        self._limits.delivered(record)
        return ()

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        step, limits, settings = history.step, self._limits.now, self._settings
        decoding = step.num_decoding
        most = prompts = step.num_prompt_tokens
        if limits is not None and prompts:
            waiting = len(history.open) - (history.num_working - len(step.admitted))
            chunk, page_size = limits.prefill_chunk, settings.page_size
            most = self._times.prompt_tokens(decoding, waiting, settings.max_step_s, chunk, page_size)
        self._times.launched(decoding, prompts, record.time)
        if prompts <= most:
            return ()
        text = f"step {record.step} computes {prompts} prompt tokens beside {decoding} requests that decode, which have"
        return (self.violation(history, f"{text} time for {most}"),)

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        self._times.resolved(record.time)
        return ()

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        self._times.in_flight.pop()  # the newest; each has a record of its own
        return ()

    @on(Contained)
    def _survived(self, record: Contained, history: History) -> Sequence[Violation]:
        self._times.forget()
        return ()
