"""Properties of what the scheduler owes to its requests: `bounded_progress`, `fault_isolation`, and
`admission_is_monotone`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from pawl.lifecycle.properties.base import ENDS, Property, Violation
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.pausing import retracts
from pawl.lifecycle.properties.ranks import Ranks
from pawl.lifecycle.records import (
    Contained,
    Delivered,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
    int32s,
)
from pawl.lifecycle.states import Cause, Event, State

_REFUSALS = frozenset({Cause.OVERLOADED, Cause.NEVER_FITS, Cause.TOO_LONG, Cause.INVALID})


class Pace(NamedTuple):
    """What the bound on steps depends on."""

    depth: int
    """Steps that may be in flight while another is planned."""
    chunk: int
    """Tokens of one prompt that a step computes at the most."""
    mixed: bool


def pace_of(started: Started | None) -> Pace | None:
    """As the configuration in the trace says; None when it does not."""
    loop: Any = started.config.get("loop") if started is not None else None
    try:
        settings = msgspec.convert(loop, _Settings)
    except msgspec.ValidationError:
        return None
    chunk = settings.prefill_chunk - settings.prefill_chunk % settings.page_size
    return Pace(int(settings.pacing == "overlap"), max(chunk, settings.page_size), settings.mixed)


class _Settings(msgspec.Struct):
    """The settings of the loop that matter here."""

    page_size: int
    prefill_chunk: int
    pacing: str
    mixed: bool


class BoundedProgress(Property):
    """With finite arrivals each request that fits ends within a stated number of steps, and each step that is launched
    changes a well-founded measure: it computes positions.

        steps <= (depth + 2) * sum over requests of (chunks + outputs + 1) * (1 + other requests' chunks)

    where the last factor is 1 for loops that mix prompts and decoding. A step that is lost, and a pause that retracts,
    begins the count anew for everybody; a time at which there is nothing to do ends it.
    """

    name = "bounded_progress"
    observes = (Started, Submitted, StepPlanned, StepRolledBack, Delivered, *ENDS)

    def __init__(self) -> None:
        self._pace: Pace | None = None
        self._steps = 0
        self._weights = 0
        """Sum of chunks + outputs + 1."""
        self._chunks = 0
        self._own = 0
        """Sum of weight * chunks."""
        self._losses = 0

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Started():
                self._pace = pace_of(record)
            case Submitted():
                self._submitted(record)
            case StepPlanned():
                return tuple(self._planned(record, history))
            case StepRolledBack():
                self._losses += not history.in_flight
            case Delivered():
                self._losses += retracts(record)
            case Transition(event=Event.FINISH | Event.ABORT) if not history.open:
                self._steps = self._weights = self._chunks = self._own = self._losses = 0
        return ()

    def _submitted(self, record: Submitted) -> None:
        if self._pace is None:
            return
        outputs = record.sampling.max_new_tokens
        chunks = -(-(len(int32s(record.tokens)) + outputs) // self._pace.chunk)
        weight = chunks + outputs + 1
        self._weights += weight
        self._chunks += chunks
        self._own += weight * chunks

    def _planned(self, record: StepPlanned, history: History) -> Iterator[Violation]:
        self._steps += 1
        if not (history.step.ends > history.step.starts).any():
            yield self.violation(history, f"step {record.step} computes nothing")
        if self._pace is None:
            return
        weight = self._weights if self._pace.mixed else self._weights * (1 + self._chunks) - self._own
        bound = (self._pace.depth + 2) * weight * (1 + self._losses)
        if self._steps > bound:
            text = f"{self._steps} steps since the last rest; {bound} are enough for all that arrived since"
            yield self.violation(history, text, min(history.open, default=None))


class FaultIsolation(Property):
    """No single input changes another request's output or stops the loop: a lost step restarts those that run, ends
    those that were part of two lost steps, and nobody else."""

    name = "fault_isolation"
    observes = (StepRolledBack, StepPlanned, Contained, *ENDS)
    max_strikes = 2

    def __init__(self) -> None:
        self._strikes: Counter[int] = Counter()
        """Lost steps that each live request was part of."""
        self._blamed: Contained | None = None
        """The failure survived last, if it was one request's fault: steps given up with it are nobody else's loss."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        infos = [beginning.table.info(row) for row in beginning.rows]
        self._strikes.update({info.request: info.strikes for info in infos if info.strikes})
        return ()

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case StepRolledBack(reason=reason) if not history.in_flight:
                if self._blamed is None or self._blamed.failure != reason:
                    self._lost(history)
            case Contained():
                self._blamed = record if record.request else None
            case Transition(event=Event.FINISH | Event.ABORT):
                return tuple(self._ended(record, history))
            case StepPlanned() if self._strikes:
                for request, count in self._strikes.items():
                    if count >= self.max_strikes:
                        text = f"step {record.step} is planned and the request, part of {count} lost steps, is live"
                        return [self.violation(history, text, request)]
        return ()

    def _lost(self, history: History) -> None:
        """The oldest step that was in flight has been rolled back: it is the one that failed."""
        step = history.step
        stayed = history.departures[step.rows] == step.departures
        restored = {admission.request for admission in history.restored}
        for request, was_live in zip(step.requests.tolist(), stayed.tolist(), strict=True):
            if was_live or request in restored:
                self._strikes[request] += 1

    def _ended(self, record: Transition, history: History) -> Iterator[Violation]:
        strikes = self._strikes.pop(record.request, 0)
        if record.cause == Cause.WORKER_LOST and not strikes:
            yield self.violation(history, "it ended with a lost step that it was no part of", record.request)


class AdmissionIsMonotone(Property):
    """An admitted request is never rejected by an admission limit later, and gives way only to work that it makes
    runnable: the oldest of those at work is never retracted for memory."""

    name = "admission_is_monotone"
    observes = (StepRolledBack, StepCommitted, Event.ADMIT, Event.RETRACT, *ENDS)

    def __init__(self) -> None:
        self._ranks = Ranks()

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._ranks.begin(beginning)
        return ()

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Transition(event=Event.ADMIT):
                self._ranks.admitted(record.request)
            case Transition(event=Event.RETRACT, cause=Cause.MEMORY):
                return tuple(self._retracted(record, history))
            case Transition(event=Event.FINISH | Event.ABORT):
                admitted = self._ranks.left(record.request)
                if record.cause in _REFUSALS and (admitted or record.source not in (State.NEW, State.QUEUED)):
                    text = f"it was admitted, and then ended by an admission limit: {record.cause}"
                    return [self.violation(history, text, record.request)]
            case StepRolledBack():
                self._ranks.rolled_back(history)
            case StepCommitted():
                self._ranks.committed(history)
        return ()

    def _retracted(self, record: Transition, history: History) -> Iterator[Violation]:
        ranks, newest = self._ranks.of, self._ranks.count
        rank = ranks.get(record.request, newest)
        working = np.flatnonzero(history.working[: history.num_rows])
        others = (int(history.request[row]) for row in working if row != record.row)
        if not any(ranks.get(other, newest) < rank for other in others):
            yield self.violation(
                history, "it was retracted for memory, and no older request is at work", record.request
            )
