"""Property `admission_is_monotone`: who is let in stays, and who gives way when pages run short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.ranks import Ranks
from pawl.lifecycle.properties.turns import stages_of
from pawl.lifecycle.records import (
    Idled,
    Int32s,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Transition,
)
from pawl.lifecycle.requests import Indices
from pawl.lifecycle.states import Cause, Event, State

_REFUSALS = frozenset({Cause.OVERLOADED, Cause.NEVER_FITS, Cause.TOO_LONG, Cause.INVALID})


class AdmissionIsMonotone(Property):
    """An admitted request is never rejected by an admission limit later, and gives way only to work that it makes
    runnable: where pages run short the youngest of those at work is retracted, and only while the pages that nobody
    uses are too few for everybody's next step, or nothing goes on before some have come from below. Of those that
    decode nobody takes a page in a step that leaves out an older one; through several stages, an older one that is in
    no step in flight, where the younger one is.

    How many pages are too few is not judged where there is a second pool.
    """

    name = "admission_is_monotone"

    def __init__(self) -> None:
        self._ranks = Ranks()
        self._one_pool = False
        self._stages = 1
        self._begun: dict[int, int] = {}
        """Output that the request in a row had when it was admitted: with more it decodes."""
        self._awaited = False
        """Pages may be on their way from a lower tier."""
        self._idled = False
        """No step could be planned since the last one was resolved."""
        self._fetching: dict[int, int] = {}
        """Requests whose prefix is on its way from a lower tier, with the cached pages that the fetch holds."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._ranks.begin(beginning)
        self._awaited = True
        for row in beginning.rows:
            if beginning.table.state[row] == State.QUEUED_FETCHING:
                self._fetching[beginning.table.info(row).request] = _most_held(row, history)
        for row in beginning.working:
            output = len(beginning.table.output(row))
            self._begun[row] = output - int(beginning.table.state[row] == State.DECODING)
        return found

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        loop: Any = record.config.get("loop")
        self._one_pool = isinstance(loop, dict) and loop.get("window") is None
        self._stages = stages_of(record)
        return ()

    @on(Event.FETCH)
    def _fetches(self, record: Transition, history: History) -> Sequence[Violation]:
        most = _most_held(record.row, history)
        held = most if record.num_cached is None else record.num_cached // history.pages.page_size
        self._fetching[record.request] = held
        self._awaited = True
        return ()

    @on(Idled)
    def _idles(self, record: Idled, history: History) -> Sequence[Violation]:
        self._idled = True
        return ()

    @on(Event.FETCHED, Event.RESTORE)
    def _returns(self, record: Transition, history: History) -> Sequence[Violation]:
        self._fetching.pop(record.request, None)
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        self._ranks.admitted(record.request)
        self._begun[record.row] = int(history.num_output[record.row])
        return ()

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        self._idled = False
        some = history.pages.fresh and history.step.num_decoding
        if not some or some == history.num_working:
            return ()
        return tuple(self._overtaken(history))

    def _overtaken(self, history: History) -> Iterator[Violation]:
        """Who decodes and has no place in a step in which a younger one takes a page for its next token."""
        step, ranks = history.step, self._ranks
        left_out = history.working.copy()
        left_out[step.rows] = False
        rows = np.flatnonzero(left_out)
        if not len(rows):
            return
        places = [history.pages.place_of(page) for page in history.pages.fresh]
        takers = {place[0] for place in places if place is not None}.intersection(step.rows[step.chained].tolist())
        if self._stages > 1:
            *ahead, _ = history.in_flight.values()
            under_way = {row for other in ahead for row in other.rows.tolist()}
            takers &= under_way
            rows = np.setdiff1d(rows, np.fromiter(under_way, np.intp))
        if not takers:
            return
        youngest = max(takers, key=lambda row: ranks.of.get(int(history.request[row]), -1))
        rank = ranks.of.get(int(history.request[youngest]), -1)
        for row in rows[_reach(history, rows, history.departures[rows]) < _most(history, rows)].tolist():
            other = int(history.request[row])
            decodes = history.num_output[row] > self._begun.get(row, history.num_output[row])
            if decodes and ranks.of.get(other, rank) < rank:
                text = f"step {step.step} leaves it out, which decodes, and gives a page to request"
                yield self.violation(history, f"{text} {history.request[youngest]}, which is younger", other)

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        self._ranks.rolled_back(history)
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        self._ranks.committed(history)
        self._idled, self._awaited = False, record.pages.quarantined > 0
        return ()

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        self._fetching.pop(record.request, None)
        admitted = self._ranks.left(record.request)
        if record.cause not in _REFUSALS or not (admitted or record.source not in (State.NEW, State.QUEUED)):
            return ()
        text = f"it was admitted, and then ended by an admission limit: {record.cause}"
        return (self.violation(history, text, record.request),)

    @on(Event.RETRACT)
    def _retracted(self, record: Transition, history: History) -> Sequence[Violation]:
        return tuple(self._gave_way(record, history)) if record.cause == Cause.MEMORY else ()

    def _gave_way(self, record: Transition, history: History) -> Iterator[Violation]:
        ranks, newest = self._ranks.of, self._ranks.count
        rank = ranks.get(record.request, newest)
        others = _working(history)
        if not len(others):
            yield self.violation(history, "it was retracted for memory, and nobody else is at work", record.request)
        for other in history.request[others].tolist():
            if ranks.get(other, newest) > rank:
                text = f"it was retracted for memory, and request {other}, which is younger, stays at work"
                yield self.violation(history, text, record.request)
                return
        blocked = self._idled and self._awaited and not history.in_flight
        if self._one_pool and history.pages.num_pages and not blocked:
            yield from self._needed(record, history, others)

    def _needed(self, record: Transition, history: History, others: Indices) -> Iterator[Violation]:
        """Whether the pages that nobody used were too few for the next step of the request and of the `others`."""
        pages, rows = history.pages, np.append(others, record.row)
        departures = history.departures[rows]
        departures[-1] -= 1
        lengths = _reach(history, rows, departures) + 1
        whole = -(-np.minimum(lengths, _most(history, rows)) // pages.page_size)
        owned = [*map(pages.num_of, others.tolist()), len(pages.released)]
        wanted = int(np.maximum(whole - np.array(owned, np.int32), 0).sum())
        own = sum(not pages.in_use(page) for page in set(pages.released))
        unused = pages.num_pages - pages.num_in_use - own - sum(self._fetching.values())
        if wanted <= unused:
            text = f"it was retracted for memory, and {unused} pages that nobody used were enough for the {wanted} that"
            yield self.violation(history, f"{text} all at work needed for their next step", record.request)


def _working(history: History) -> Indices:
    """Rows at work."""
    rows: Indices = np.flatnonzero(history.working)
    return rows


def _reach(history: History, rows: Indices, departures: Int32s) -> Int32s:
    """Positions of each row that are computed or in flight, of one that has left work so often; for a prompt of which
    only a part is, all but the last."""
    reach: Int32s = history.num_prompt[rows] + history.num_output[rows] - 1
    for step in history.in_flight.values():
        for index, row in enumerate(rows.tolist()):
            mine = (step.rows == row) & (step.departures == departures[index])
            reach[index] = max(reach[index], step.ends[mine].max(initial=0))
    return reach


def _most_held(row: int, history: History) -> int:
    """Cached pages before the first one that a fetch brings, at the most."""
    return max((int(history.num_prompt[row]) - 1) // history.pages.page_size - 1, 0)


def _most(history: History, rows: Indices) -> Int32s:
    """Positions that are computed for each row at the most: the last token of an output is not."""
    most: Int32s = history.num_prompt[rows] + np.maximum(history.num_wanted[rows] - 1, 0)
    return most
