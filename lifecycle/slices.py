"""Causal slices: the records that concern one request, up to the one that shows a violation."""

from __future__ import annotations

from collections import deque

import msgspec
import numpy as np

from pawl.lifecycle.properties.base import Violation
from pawl.lifecycle.properties.beginning import beginning_of
from pawl.lifecycle.properties.monitor import WELL_FORMED
from pawl.lifecycle.records import (
    Checkpoint,
    Closed,
    Record,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
    int32s,
    uint8s,
)
from pawl.lifecycle.states import Event

MAX_SLICE = 40
"""Lines of one slice: the newest."""


class Line(msgspec.Struct, frozen=True):
    """One record as it concerns one request."""

    record: int
    text: str


class Slice:
    """The records up to a violation that concern its request."""

    def __init__(self, violation: Violation) -> None:
        self._violation = violation
        self._row: int | None = None
        self._steps: dict[int, int] = {}
        """step in flight -> the request's segment in it"""
        self.lines: deque[Line] = deque(maxlen=MAX_SLICE if violation.request is not None else 5)

    def observe(self, number: int, record: Record) -> None:
        if number > self._violation.record:
            return
        bare = self._violation.request is None or (
            self._violation.property == WELL_FORMED and number == self._violation.record
        )
        try:
            text = type(record).__name__ if bare else self._concerning(record)
        except Exception:  # a record may hold anything
            text = f"a {type(record).__name__} that cannot be read"
        if text is not None:
            self.lines.append(Line(number, text))

    def _concerning(self, record: Record) -> str | None:
        """The record in words, when it concerns the request."""
        request = self._violation.request
        match record:
            case Checkpoint(state=bytes()) if not self.lines:
                self._row = next((live.row for live in beginning_of(record).arrivals if live.request == request), None)
                return None if self._row is None else f"live in row {self._row}, where the trace begins"
            case Submitted(request=number) if number == request:
                self._row = record.row
                return f"submitted in row {record.row} with {len(int32s(record.tokens))} prompt tokens"
            case Submitted(row=row) if row == self._row:
                self._row = None
                return f"row {row} is given to request {record.request}"
            case Transition(request=number) if number == request:
                edge = f"{record.source.name} --{record.event.name.lower()}({record.cause})--> {record.target.name}"
                return f"{edge} in step {record.step}"
            case StepPlanned():
                return self._planned(record)
            case StepCommitted(step=step) if step in self._steps:
                return f"step {step} committed: {Event(int(uint8s(record.events)[self._steps.pop(step)])).name.lower()}"
            case StepRolledBack(step=step) if step in self._steps:
                del self._steps[step]
                return f"step {step} rolled back: {record.reason}"
            case Closed():
                return f"closed: {record.reason}"
        return None

    def _planned(self, record: StepPlanned) -> str | None:
        if self._row is None:
            return None
        found = np.flatnonzero(int32s(record.rows) == self._row)
        if not len(found):
            return None
        index = self._steps[record.step] = int(found[0])
        start, length = int(int32s(record.starts)[index]), int(int32s(record.lengths)[index])
        draws = ", draws a token" if uint8s(record.samples)[index] else ""
        return f"step {record.step} planned: positions {start} to {start + length - 1}{draws}"
