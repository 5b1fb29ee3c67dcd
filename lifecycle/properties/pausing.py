"""Property `paused_is_still`, and whether the engine is paused, for others that judge by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pawl.lifecycle.machines.serving import SERVING, Serving, ServingEvent
from pawl.lifecycle.marks import Contained
from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import (
    Delivered,
    Flushed,
    Idled,
    Record,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
)
from pawl.lifecycle.states import Event

EVENTS = frozenset(str(event) for event in ServingEvent)
"""Orders that are events of the machine, by their tags."""


class Pauses:
    """Whether the engine is paused."""

    def __init__(self) -> None:
        self.serving: Serving = SERVING.start

    @property
    def paused(self) -> bool:
        return self.serving is Serving.PAUSED

    def begin(self, beginning: Beginning) -> None:
        """Start from a checkpoint."""
        self.serving = beginning.serving

    def delivered(self, record: Delivered) -> None:
        """An order has reached the loop."""
        if record.kind in EVENTS:
            self.serving = SERVING.next(self.serving, ServingEvent(record.kind))


def retracts(record: Record | None) -> bool:
    """Whether it is a pause in which whoever runs gives its memory back."""
    return isinstance(record, Delivered) and record.kind == "pause" and record.fields.get("retract") is True


_WHILE_PAUSED = "was planned while the engine was paused"


class PausedIsStill(Property):
    """While the engine is paused no step is planned and nobody is admitted; a pause that retracts leaves nobody with
    memory."""

    name: ClassVar[str] = "paused_is_still"

    def __init__(self) -> None:
        self._pauses = Pauses()
        self._retracted = False
        """Whoever ran has been retracted, and nobody may have memory until the engine goes on."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._pauses.begin(beginning)
        return ()

    @on(StepPlanned, Idled)
    def _planned(self, record: StepPlanned | Idled, history: History) -> Sequence[Violation]:
        return (self.violation(history, f"a step {_WHILE_PAUSED}"),) if self._pauses.paused else ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        if not self._pauses.paused:
            return ()
        return (self.violation(history, f"its admission {_WHILE_PAUSED}", record.request),)

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        found = self._looked(record, history)
        self._pauses.delivered(record)
        self._retracted = (self._retracted or retracts(record)) and self._pauses.paused
        return found

    @on(Contained)
    def _survived(self, record: Contained, history: History) -> Sequence[Violation]:
        self._retracted = False  # the order may be what failed: half of it may be done
        return ()

    # What follows from a pause stands between it and the next of these.
    @on(Submitted, StepCommitted, StepRolledBack, Flushed)
    def _looked(self, record: Record, history: History) -> Sequence[Violation]:
        if not self._retracted or not history.num_working:
            return ()
        row = int(history.working.argmax())
        text = "the engine was paused, everybody to be retracted, and it is at work"
        return (self.violation(history, text, int(history.request[row])),)
