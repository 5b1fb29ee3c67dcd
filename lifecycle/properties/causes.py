"""Property `true_causes`: what a request is said to have ended by, or to have lost its memory for, has happened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, TypeAlias

from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.pausing import retracts
from pawl.lifecycle.records import (
    Closed,
    Contained,
    Delivered,
    Idled,
    Record,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    TierTold,
    Transition,
)
from pawl.lifecycle.states import Cause, Event

Moment: TypeAlias = Submitted | Delivered | StepPlanned | Idled | StepCommitted | StepRolledBack | TierTold | Contained
"""What transitions of single requests follow from."""
_BY_ORDER = frozenset({Cause.CLIENT, Cause.DISCONNECT, Cause.TIMEOUT, Cause.DRAINED, Cause.INTERNAL})
_DRAINS = frozenset({"drain", "end_all"})


class TrueCauses(Property):
    """Causes are true: memory is taken for a plan that follows, because a step was lost, or by a pause that says so; a
    stop string ends a request by the order that says so, its length or a token when a step is committed; time is over
    at a look at deadlines and not before; and who is aborted was named with that cause, but where the engine drains or
    failed."""

    name: ClassVar[str] = "true_causes"
    observes = (
        *(Transition, Submitted, Delivered, StepPlanned, Idled, StepCommitted),
        *(StepRolledBack, TierTold, Contained, Closed),
    )

    def __init__(self) -> None:
        self._after: Moment | None = None
        """What happened last."""
        self._squeezed: int | None = None
        """Retracted for memory, and no plan has followed."""
        self._asked: dict[int, set[str]] = {}
        """request -> causes of the orders to abort it"""
        self._told = False
        """Whether the trace says what the scheduler was told."""
        self._drains = False
        self._failed = False

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        # Whether the engine has survived a failure is not known.
        self._told = self._failed = True
        self._drains = beginning.draining
        self._asked = {request: {str(cause) for cause in Cause} for request in beginning.ended_early}
        return ()

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        if isinstance(record, Transition):
            return tuple(self._moved(record, history))
        squeezed = self._squeezed
        self._squeezed = None
        if not isinstance(record, Moment):
            self._squeezed = squeezed if not isinstance(record, Closed) else None
            return ()
        self._after = record
        match record:
            case Delivered():
                self._told = True
                self._drains |= record.kind in _DRAINS
                self._ordered(record)
            case Contained():
                self._failed = True
        if squeezed is None or isinstance(record, StepPlanned | Idled | Contained):
            return ()
        return (self.violation(history, "it was retracted for memory, and no plan followed", squeezed),)

    def _ordered(self, record: Delivered) -> None:
        named = record.fields.get("requests")
        if record.kind == "abort" and isinstance(named, list | tuple):
            for request in named:
                self._asked.setdefault(request, set()).add(str(record.fields.get("cause", Cause.CLIENT)))

    def _moved(self, record: Transition, history: History) -> Iterator[Violation]:
        match record.event:
            case Event.RETRACT if record.cause == Cause.MEMORY:
                self._squeezed = record.request
            case Event.RETRACT if record.cause == Cause.PAUSED:
                if not retracts(self._after):
                    yield self.violation(history, "it was retracted by a pause, and none says so", record.request)
            case Event.RETRACT:
                if not isinstance(self._after, StepRolledBack | Contained):
                    yield self.violation(history, "it was retracted for a lost step, and none was lost", record.request)
            case Event.FINISH if self._told:
                yield from self._finished(record, history)
            case Event.ABORT:
                if self._told and record.cause in _BY_ORDER and not self._is_true(record, history):
                    text = f"it was aborted by {record.cause}, and nothing of the kind had happened"
                    yield self.violation(history, text, record.request)
                self._asked.pop(record.request, None)

    def _finished(self, record: Transition, history: History) -> Iterator[Violation]:
        after = self._after
        if record.cause != Cause.STOP_STRING:
            if not isinstance(after, StepCommitted | StepRolledBack | Contained):
                yield self.violation(history, f"it ended by {record.cause}, and no step had come back", record.request)
            return
        order = {"request": record.request, "num_output": record.num_output}
        if not isinstance(after, Delivered) or after.kind != "finish" or after.fields != order:
            yield self.violation(history, "it ended by a stop string, and no order says so", record.request)

    def _is_true(self, record: Transition, history: History) -> bool:
        match record.cause:
            case Cause.TIMEOUT:
                submitted, after = history.submissions.get(record.row), self._after
                deadline = None if submitted is None else submitted.deadline
                looked = isinstance(after, Delivered) and after.kind == "check_deadlines"
                return looked and deadline is not None and deadline <= record.time
            case Cause.DRAINED:
                return self._drains
            case Cause.INTERNAL if self._failed or self._without_token(record.row, history):
                return True
        return record.cause in self._asked.get(record.request, ())

    def _without_token(self, row: int, history: History) -> bool:
        """The oldest step in flight draws for it: the worker may have had no token."""
        for step in history.in_flight.values():
            return row in step.rows[step.samples]
        return False
