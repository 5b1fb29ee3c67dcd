"""Properties that records decide, for simulated runs: aborts, flushes, namespaces, and fairness of the order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from lifecycle.properties.base import Property, Violation
from lifecycle.properties.history import History
from lifecycle.records import Delivered, Flushed, Record, StepPlanned, StepRolledBack, Submitted, Transition, int32s
from lifecycle.states import Cause, Event

USUAL_LIMIT = 3
"""Later requests that may be admitted before an earlier one of the same priority, where the policy states nothing."""


class AbortIsTotal(Property):
    """A request that somebody asked to end takes part in no further step, and ends aborted, wherever it is."""

    name: ClassVar[str] = "abort_is_total"

    def __init__(self) -> None:
        self._asked: set[int] = set()
        """Live, or not submitted yet, when they were asked to end."""
        self._ended: set[int] = set()

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Delivered(kind="Abort"):
                self._asked |= set(msgspec.msgpack.decode(record.payload)["requests"]) - self._ended
            case Transition(event=Event.FINISH | Event.ABORT):
                self._ended.add(record.request)
                if record.event == Event.FINISH and record.request in self._asked:
                    return [self.violation(history, "it finished although it was to be aborted", record.request)]
            case StepPlanned():
                late = sorted(self._asked & history.open.keys())
                if late:
                    text = f"step {record.step} is planned and the request, which was to be aborted, is live"
                    return [self.violation(history, text, late[0])]
        return ()


class QuiescentFlush(Property):
    """The cache is flushed only while no request is live and no step in flight."""

    name: ClassVar[str] = "quiescent_flush"

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        if not isinstance(record, Flushed) or not (history.open or history.in_flight):
            return ()
        text = f"the cache was flushed with {len(history.open)} requests live, {len(history.in_flight)} steps in flight"
        return [self.violation(history, text)]


class NamespaceIsolation(Property):
    """A cached page is shared only with requests of the namespace in which it was written."""

    name: ClassVar[str] = "namespace_isolation"

    def __init__(self) -> None:
        self._namespace: dict[int, str] = {}
        """request -> its namespace"""
        self._written_in: dict[int, str] = {}
        """page -> namespace of the request that took it last"""
        self._holder: dict[int, int] = {}
        """slot -> request"""
        self._num_cached: dict[int, int] = {}
        """request -> cached pages that it begins with, until the step that admits it is planned"""
        self._placed: dict[int, set[int]] = {}
        """request -> page-table indices that it has"""

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Submitted():
                self._namespace[record.request] = record.namespace
            case Transition(event=Event.ADMIT):
                self._num_cached[record.request] = record.num_cached or 0
                self._placed[record.request] = set()
            case StepPlanned():
                return self._planned(record, history)
        return ()

    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        size = history.started.page_size if history.started is not None else 1
        columns = (record.rows, record.slots, record.starts, record.lengths)
        reach: dict[int, int] = {}
        for row, slot, start, length in zip(*(int32s(column).tolist() for column in columns), strict=True):
            self._holder[slot] = int(history.request[row])
            reach[slot] = -(-(start + length) // size)
        found = []
        places = zip(int32s(record.page_slots).tolist(), int32s(record.page_indices).tolist(), strict=True)
        # Of one place the last entry counts: one before it was meant for a request that has left.
        for (slot, index), page in dict(zip(places, int32s(record.pages).tolist(), strict=True)).items():
            request = self._holder.get(slot)
            if request is None:
                continue
            mine, placed = self._namespace[request], self._placed.setdefault(request, set())
            if index not in placed and index >= reach.get(slot, 0):
                continue  # this one was, too
            shared = index in placed or index < self._num_cached.get(request, 0) // size
            placed.add(index)
            if not shared:
                self._written_in[page] = mine
            elif self._written_in.get(page, mine) != mine:
                text = f"page {page} was written in namespace {self._written_in[page]!r} and is used in {mine!r}"
                found.append(self.violation(history, text, request))
        self._num_cached.clear()
        return found


class OldestStays(Property):
    """Who must give way for want of memory is never the running request that was admitted first: so that one ends."""

    name: ClassVar[str] = "admission_is_monotone"

    def __init__(self) -> None:
        self._waiting_new: set[int] = set()
        """Never admitted."""
        self._running: set[int] = set()
        self._rank: dict[int, int] = {}
        """request -> when it was first admitted"""

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Transition(event=Event.SUBMIT):
                self._waiting_new.add(record.request)
            case Transition(event=Event.ADMIT):
                if record.request in self._waiting_new:
                    self._waiting_new.discard(record.request)
                    self._rank[record.request] = history.number
                self._running.add(record.request)
            case Transition(event=Event.RETRACT, cause=Cause.MEMORY):
                oldest = min(self._running, key=self._rank.__getitem__, default=None)
                self._running.discard(record.request)
                if record.request == oldest:
                    return [self.violation(history, "it was admitted first, and is retracted", record.request)]
            case Transition(event=Event.RETRACT | Event.FINISH | Event.ABORT):
                self._running.discard(record.request)
                self._waiting_new.discard(record.request)
            case StepRolledBack():
                for admission in history.restored:
                    self._running.discard(admission.request)
        return ()


class BoundedOvertaking(Property):
    """At most `limit` requests that came later, of equal priority, are admitted before a request that waits."""

    name: ClassVar[str] = "bounded_overtaking"

    def __init__(self, limit: int = USUAL_LIMIT) -> None:
        self.limit = limit
        self._priority: dict[int, int] = {}
        self._overtaken: dict[int, int] = {}
        """request that was never admitted -> how many have overtaken it; in order of arrival"""

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Submitted():
                self._priority[record.request] = record.priority
            case Transition(event=Event.SUBMIT):
                self._overtaken[record.request] = 0
            case Transition(event=Event.FINISH | Event.ABORT):
                self._overtaken.pop(record.request, None)
            case Transition(event=Event.ADMIT) if record.request in self._overtaken:
                return self._admitted(record.request, history)
        return ()

    def _admitted(self, request: int, history: History) -> Sequence[Violation]:
        del self._overtaken[request]
        found = []
        for other in self._overtaken:
            if other > request or self._priority[other] != self._priority[request]:
                continue
            self._overtaken[other] += 1
            if self._overtaken[other] == self.limit + 1:
                text = f"{self._overtaken[other]} later requests were admitted before it; {self.limit} may be"
                found.append(self.violation(history, text, other))
        return found
