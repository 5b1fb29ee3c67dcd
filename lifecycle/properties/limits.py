"""Property `limits_hold`, and what steps are planned within, for others that judge by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import msgspec

from pawl.lifecycle.limits import SETTABLE, Limits, refusals
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import (
    Delivered,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
)
from pawl.lifecycle.requests import NOT_ADMITTED
from pawl.lifecycle.states import Cause, Event


class _Settings(msgspec.Struct):
    """The settings of the loop that matter here."""

    page_size: int
    max_running: int
    prefill_chunk: int
    max_queued: int


class FollowedLimits:
    """The limits, as the first record and the orders since say."""

    def __init__(self) -> None:
        self.now: Limits | None = None
        """None: the first record does not say."""
        self._at_start: Limits | None = None
        self._page_size = 0

    def start(self, record: Started) -> None:
        """The engine starts."""
        loop: Any = record.config.get("loop")
        try:
            settings = msgspec.convert(loop, _Settings)
        except msgspec.ValidationError:
            return
        self._at_start = Limits(**{name: getattr(settings, name) for name in SETTABLE})
        self.now, self._page_size = msgspec.structs.replace(self._at_start), settings.page_size

    def begin(self, beginning: Beginning) -> None:
        """Start from a checkpoint."""
        self.start(beginning.started)
        if self.now is not None:
            self.now = msgspec.structs.replace(beginning.limits.now)

    def refusals(self, limits: Limits) -> list[str]:
        """Why these limits cannot have been set."""
        given = {name: getattr(limits, name) for name in SETTABLE}
        return [] if self._at_start is None else list(refusals(given, self._at_start, self._page_size))

    def may_lack_rows(self, history: History) -> bool:
        """Whether those who are live, and those who are gone and named by a step in flight, may have all rows."""
        named = {row for step in history.in_flight.values() for row in step.rows.tolist()}
        at_start, held = self._at_start, named.union(history.open.values())
        return at_start is None or len(held) >= at_start.max_running + at_start.max_queued

    def delivered(self, record: Delivered) -> None:
        """An order has reached the loop."""
        if self.now is None or self._at_start is None:
            return
        if record.kind == "slow_down":
            self.now.step_delay_s = record.fields.get("forward_sleep_time") or 0.0
        elif record.kind == "set_state":
            given = {name: record.fields[name] for name in SETTABLE if record.fields.get(name) is not None}
            if not any(refusals(given, self._at_start, self._page_size)):
                self.now = msgspec.structs.replace(self.now, **given)


class LimitsHold(Property):
    """Each step is planned within the limits that are set at that time, all together or not at all: it computes no more
    prompt tokens than one may, nobody is admitted beyond those who may run, and it waits for as long as steps are
    slowed down by, from the launch, the result or the arrival at rest before it. Nobody comes to wait beside as many
    as may, who were never admitted; and nobody is refused beside fewer."""

    name: ClassVar[str] = "limits_hold"

    def __init__(self) -> None:
        self._limits = FollowedLimits()
        self._ready_at = 0.0
        self._waiting: set[int] = set()
        """Requests that were never admitted."""
        self._begun: set[int] = set()
        """Those whose first admission may still be undone."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._limits.begin(beginning)
        self._ready_at = beginning.limits.ready_at
        table = beginning.table
        self._waiting = {table.info(row).request for row in beginning.rows if table.order[row] == NOT_ADMITTED}
        return [self.violation(history, text) for text in self._limits.refusals(beginning.limits.now)]

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        self._limits.start(record)
        return ()

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        self._limits.delivered(record)
        return ()

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        if len(history.open) == 1 and not history.in_flight:
            self._ready_at = record.time
        return ()

    @on(Event.SUBMIT, Event.SUBMIT_GRAMMAR)
    def _comes_to_wait(self, record: Transition, history: History) -> Sequence[Violation]:
        limits, waiting = self._limits.now, len(self._waiting)
        self._waiting.add(record.request)
        if limits is None or waiting < limits.max_queued:
            return ()
        text = f"it comes to wait beside {waiting} requests, where {limits.max_queued} may"
        return (self.violation(history, text, record.request),)

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        self._waiting.discard(record.request)
        self._begun.discard(record.request)
        limits, waiting = self._limits.now, len(self._waiting)
        if limits is None or record.cause is not Cause.OVERLOADED or waiting >= limits.max_queued:
            return ()
        if self._limits.may_lack_rows(history):
            return ()
        text = f"it is refused beside {waiting} requests that wait, where {limits.max_queued} may"
        return (self.violation(history, text, record.request),)

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        self._ready_at = record.time
        self._begun.difference_update(admission.request for admission in history.step.admitted)
        return ()

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        self._ready_at = record.time
        undone = self._begun.intersection(admission.request for admission in history.restored)
        self._begun -= undone
        self._waiting |= undone
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        if record.request in self._waiting:
            self._waiting.remove(record.request)
            self._begun.add(record.request)
        limits, running = self._limits.now, history.num_working
        if limits is None or running <= limits.max_running:
            return ()
        text = f"{running} requests run with it, where {limits.max_running} may"
        return (self.violation(history, text, record.request),)

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        limits, step = self._limits.now, history.step
        ready_at, self._ready_at = self._ready_at, record.time
        if limits is None:
            return ()
        if record.time < ready_at + limits.step_delay_s:
            waited = record.time - ready_at
            text = f"step {record.step} has waited for {waited:g} s, where steps wait for {limits.step_delay_s:g} s"
            return (self.violation(history, text),)
        num_prompt = step.num_prompt_tokens
        if num_prompt > limits.prefill_chunk:
            text = f"step {record.step} computes {num_prompt} prompt tokens, where {limits.prefill_chunk} may be"
            return (self.violation(history, text),)
        return ()
