"""Fairness of the order in which requests start: a property of policies, for simulated runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from pawl.lifecycle.properties.admission_order import is_being_computed
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import StepCommitted, StepRolledBack, Submitted, Transition
from pawl.lifecycle.states import Event

USUAL_LIMIT = 3
"""Later requests that may be admitted before an earlier one of the same priority, where the policy states nothing."""


@dataclass
class Times:
    """When a request came, was admitted first, had its first token and ended; None: it has not."""

    submitted: float
    admitted: float | None = None
    first_token: float | None = None
    ended: float | None = None


class UsageTold(Property):
    """How often each request lost its memory, what the cache had of its prompt at its first admission, what was drafted
    for it, and when it came how far. Judges nothing by itself: what clients are told, and what the engine counts, is
    compared with it."""

    name: ClassVar[str] = "observability_conservation"

    def __init__(self) -> None:
        self.cached: dict[int, int] = {}
        """request -> tokens, as its client is told"""
        self.total_cached = 0
        """As the engine counts them: undone admissions do not count."""
        self._most: dict[int, int] = {}
        """request -> tokens that count as cached at the most: others were computed for it elsewhere"""
        self.retractions: Counter[int] = Counter()
        """Of each request."""
        self.num_drafts = 0
        """That were tried while their request was at work."""
        self.drafted: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()
        """Tokens of drafts that were tried while it was at work, and those of them that became output."""
        self.times: dict[int, Times] = {}
        """Of requests that came here first."""
        self.num_dropped = 0
        """Tokens that were drawn, and are nobody's: of requests that had left, and behind a stop string."""

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        if record.num_retractions:  # a lost replica had it
            self.retractions[record.request] = record.num_retractions
            self.cached[record.request] = record.num_cached
        else:
            self.times[record.request] = Times(record.time)
        return ()

    @on(Event.RETRACT)
    def _retracted(self, record: Transition, history: History) -> Sequence[Violation]:
        self.retractions[record.request] += 1
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        times = self.times.get(record.request)
        if times is not None and times.admitted is None:
            times.admitted = record.time
        if not self.retractions[record.request]:
            self.cached[record.request] = self._counts(record)
            self.total_cached += self._counts(record)
        return ()

    def _counts(self, admission: Transition) -> int:
        found = admission.num_cached or 0
        return min(found, self._most.get(admission.request, found))

    @on(Event.GRANT, Event.RECEIVE)
    def _elsewhere(self, record: Transition, history: History) -> Sequence[Violation]:
        if record.num_cached is not None:
            self._most[record.request] = record.num_cached
        return ()

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        for admission in history.restored:
            if not self.retractions[admission.request]:
                self.total_cached -= self._counts(admission)
        return ()

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        if record.num_output is not None:
            self.num_dropped += int(history.num_output[record.row]) - record.num_output
        if record.request in self.times:
            self.times[record.request].ended = record.time
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        self.num_dropped += len(history.committed.tokens) - int(history.committed.counts.sum())
        for request in history.step.requests[history.committed.drew].tolist():
            times = self.times.get(request)
            if times is not None and times.first_token is None:
                times.first_token = record.time
        if record.counts is not None:
            step, committed = history.step, history.committed
            for index in np.flatnonzero(committed.drew & step.chained).tolist():
                request, drafted = int(step.requests[index]), int(step.ends[index] - step.starts[index]) - 1
                self.num_drafts += drafted > 0
                self.drafted[request] += drafted
                self.accepted[request] += int(committed.counts[index]) - 1
        return ()


class BoundedOvertaking(Property):
    """At most `limit` requests that came later, of equal priority, are admitted before a request that waits for nothing
    but its turn: neither for its grammar or adapter, nor for what another tier or another replica has of its prompt,
    nor for a page that another computes right now."""

    name: ClassVar[str] = "bounded_overtaking"

    def __init__(self, limit: int = USUAL_LIMIT) -> None:
        self.limit = limit
        self._priority: dict[int, int] = {}
        self._overtaken: dict[int, list[int]] = {}
        """request that was never admitted -> those that have overtaken it; in order of arrival"""
        self._admitted_by: dict[int, list[int]] = {}
        """request whose first admission may still be undone -> those that had overtaken it"""
        self._apart: set[int] = set()
        """Those that wait for something else than their turn."""

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        self._priority[record.request] = record.priority
        return ()

    @on(Event.SUBMIT, Event.GRAMMAR_READY)
    def _waits(self, record: Transition, history: History) -> Sequence[Violation]:
        self._overtaken[record.request] = []
        return ()

    @on(Event.FETCH, Event.LOAD, Event.RESERVE)
    def _steps_aside(self, record: Transition, history: History) -> Sequence[Violation]:
        self._apart.add(record.request)
        return ()

    @on(Event.FETCHED, Event.LOADED, Event.RECEIVE, Event.RESTORE)
    def _is_back(self, record: Transition, history: History) -> Sequence[Violation]:
        self._apart.discard(record.request)
        return ()

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        self._overtaken.pop(record.request, None)
        self._apart.discard(record.request)
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        for admission in history.step.admitted:
            self._admitted_by.pop(admission.request, None)
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        request = record.request
        if request not in self._overtaken:
            return ()
        self._admitted_by[request] = self._overtaken.pop(request)
        found = []
        for other, ahead in self._overtaken.items():
            if other > request or other in self._apart or self._priority[other] != self._priority[request]:
                continue
            if is_being_computed(history.open[other], record.row, history):
                continue
            ahead.append(request)
            if len(ahead) == self.limit + 1:
                who = ", ".join(map(str, ahead))
                text = f"requests {who} came later and were admitted before it, in this order; {self.limit} may be"
                found.append(self.violation(history, text, other))
        return found

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        """Those whose admission is undone wait again, in their old places, and have overtaken nobody."""
        for request in (admission.request for admission in history.restored):
            if request in self._admitted_by:
                self._overtaken[request] = self._admitted_by.pop(request)
                for ahead in self._overtaken.values():
                    if request in ahead:
                        ahead.remove(request)
        self._overtaken = dict(sorted(self._overtaken.items()))
        return ()
