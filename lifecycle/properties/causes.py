"""Property `true_causes`: what a request is said to have ended by, or to have lost its memory for, has happened."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from pawl.lifecycle.machines.weights import WeightEvent
from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.pausing import retracts
from pawl.lifecycle.properties.steps import runner_gone
from pawl.lifecycle.records import (
    Closed,
    Contained,
    Delivered,
    Idled,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    TierTold,
    Transition,
    WeightsMoved,
)
from pawl.lifecycle.states import Cause, Event

Moment: TypeAlias = (
    Submitted | Delivered | StepPlanned | Idled | StepCommitted | StepRolledBack | TierTold | Contained | WeightsMoved
)
"""What transitions of single requests follow from."""
_BY_ORDER = frozenset({Cause.CLIENT, Cause.DISCONNECT, Cause.TIMEOUT, Cause.DRAINED, Cause.INTERNAL})
_DRAINS = frozenset({"drain", "end_all"})


class TrueCauses(Property):
    """Causes are true: memory is taken for a plan that follows, because a step or what computes was lost, or by a pause
    that says so; a fetch is given up when its lease ends or the worker is lost; a stop string ends a request by the
    order that says so, its length or a token when a step is committed; time is over at a look at deadlines and not
    before, or by an order; and who is aborted was named with that cause, but where the engine drains or failed."""

    name: ClassVar[str] = "true_causes"

    def __init__(self) -> None:
        self._after: Moment | None = None
        """What happened last."""
        self._squeezed: int | None = None
        """Retracted for memory, and no plan has followed."""
        self._asked: dict[int, set[str]] = {}
        """request -> causes of the orders to abort it"""
        self._of_all: set[str] = set()
        """Causes of the orders to end all."""
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

    @on(StepPlanned, Idled)
    def _plans(self, record: StepPlanned | Idled, history: History) -> Sequence[Violation]:
        self._after, self._squeezed = record, None
        return ()

    @on(Contained)
    def _contained(self, record: Contained, history: History) -> Sequence[Violation]:
        self._after, self._squeezed, self._failed = record, None, True
        return ()

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        self._told = True
        self._drains |= record.kind in _DRAINS
        if record.kind == "end_all":
            self._of_all.add(str(record.fields.get("cause", Cause.DRAINED)))
        named = record.fields.get("requests")
        if record.kind == "abort" and isinstance(named, list | tuple):
            for request in named:
                self._asked.setdefault(request, set()).add(str(record.fields.get("cause", Cause.CLIENT)))
        return self._happened(record, history)

    @on(Submitted, StepCommitted, StepRolledBack, TierTold, WeightsMoved)
    def _happened(self, record: Moment, history: History) -> Sequence[Violation]:
        self._after, squeezed, self._squeezed = record, self._squeezed, None
        if squeezed is None:
            return ()
        return (self.violation(history, "it was retracted for memory, and no plan followed", squeezed),)

    @on(Closed)
    def _closed(self, record: Closed, history: History) -> Sequence[Violation]:
        self._squeezed = None
        return ()

    @on(Event.RETRACT)
    def _retracted(self, record: Transition, history: History) -> Sequence[Violation]:
        if record.cause == Cause.MEMORY:
            self._squeezed = record.request
            return ()
        if record.cause == Cause.PAUSED:
            true, text = retracts(self._after), "it was retracted by a pause, and none says so"
        elif record.cause == Cause.WEIGHTS:
            after, text = self._after, "it was retracted for new weights, and there were none"
            true = isinstance(after, WeightsMoved) and after.event is WeightEvent.SWAPPED
        else:
            between = runner_gone(self._after) and not history.in_flight
            true = between or isinstance(self._after, StepRolledBack | Contained)
            text = "it was retracted for a lost step, and none was lost"
        return () if true else (self.violation(history, text, record.request),)

    @on(Event.RESTORE)
    def _restored(self, record: Transition, history: History) -> Sequence[Violation]:
        lost = record.cause != Cause.TIMEOUT
        true = _lost(self._after) if lost else _lease_ended(self._after)
        text = f"what was to come is given up by {record.cause}, and nothing of the kind had happened"
        return () if true else (self.violation(history, text, record.request),)

    @on(Event.ABORT)
    def _aborted(self, record: Transition, history: History) -> Sequence[Violation]:
        true = not self._told or record.cause not in _BY_ORDER or self._is_true(record, history)
        self._asked.pop(record.request, None)
        if true:
            return ()
        text = f"it was aborted by {record.cause}, and nothing of the kind had happened"
        return (self.violation(history, text, record.request),)

    @on(Event.FINISH)
    def _finished(self, record: Transition, history: History) -> Sequence[Violation]:
        if not self._told:
            return ()
        after = self._after
        if record.cause == Cause.STOP_STRING:
            order = {"request": record.request, "num_output": record.num_output}
            true = isinstance(after, Delivered) and after.kind == "finish" and after.fields == order
            text = "it ended by a stop string, and no order says so"
        else:
            true = isinstance(after, StepCommitted | StepRolledBack | Contained)
            text = f"it ended by {record.cause}, and no step had come back"
        return () if true else (self.violation(history, text, record.request),)

    def _is_true(self, record: Transition, history: History) -> bool:
        match record.cause:
            case Cause.TIMEOUT:
                submitted, after = history.submissions.get(record.row), self._after
                deadline = None if submitted is None else submitted.deadline
                looked = isinstance(after, Delivered) and after.kind == "check_deadlines"
                if looked and deadline is not None and deadline <= record.time:
                    return True
            case Cause.DRAINED:
                return self._drains
            case Cause.INTERNAL if self._failed or self._without_answer(record.row, history):
                return True
        return record.cause in self._asked.get(record.request, ()) or record.cause in self._of_all

    def _without_answer(self, row: int, history: History) -> bool:
        """The oldest step in flight draws for it, or was to give it its vector: the worker may have had none."""
        for step in history.in_flight.values():
            submitted = history.submissions.get(row)
            embeds = submitted is not None and submitted.sampling.embed
            return row in step.rows[step.samples | (embeds & (step.ends == history.num_prompt[step.rows]))]
        return False


def _lease_ended(moment: Moment | None) -> bool:
    """Whether this is the end of the time that requests wait for a lower tier, or for a prefill elsewhere."""
    return isinstance(moment, TierTold) and moment.kind in ("expired", "overdue")


def _lost(moment: Moment | None) -> bool:
    """Whether pages are lost that requests had or were to have."""
    gone = isinstance(moment, TierTold) and moment.kind == "prefiller_down"
    exchanged = isinstance(moment, WeightsMoved) and moment.event is WeightEvent.SWAPPED
    return gone or exchanged or runner_gone(moment) or isinstance(moment, StepRolledBack | Contained)
