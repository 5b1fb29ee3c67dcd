"""What the records so far say: which request a row means, which steps are in flight, how far each request is.

Every property needs these facts, so they are gathered once. Nothing is judged here, with one exception: records that
do not fit together at all (a step that was never planned, a row that nobody has) raise `Malformed`, because nothing
that follows from them means anything.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.lifecycle.properties.beginning import Beginning, beginning_of
from pawl.lifecycle.properties.cache_view import CacheView
from pawl.lifecycle.properties.growing import fitted, roomy
from pawl.lifecycle.properties.pages import PageUse
from pawl.lifecycle.records import (
    Answered,
    AnswersClosed,
    Cached,
    Checkpoint,
    Closed,
    Int32s,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
    UInt8s,
    int32s,
    uint8s,
)
from pawl.lifecycle.requests import Indices
from pawl.lifecycle.states import Event

Int64s: TypeAlias = NDArray[np.int64]
Bools: TypeAlias = NDArray[np.bool_]

# numpy compares an array with a number four times as fast as with an enumeration.
_TOKEN, _FIRST_TOKEN = int(Event.TOKEN), int(Event.FIRST_TOKEN)
DEPARTURES = frozenset({Event.RETRACT, Event.RESTORE, Event.FINISH, Event.ABORT})
"""Events after which the tokens of steps in flight are stale."""


MOST_ROWS = 1 << 20
"""Rows of one table: beyond what any engine has, and arrays of as many still fit."""
MOST_PAGES = 1 << 24
"""Pages of one pool, likewise."""


class Malformed(Exception):
    """A record contradicts the records before it."""

    def __init__(self, explanation: str, request: int | None = None) -> None:
        super().__init__(explanation)
        self.request = request


class Step(NamedTuple):
    """One step in flight; the columns are of its segments."""

    step: int
    rows: Indices
    slots: Int32s
    starts: Int32s
    ends: Int32s
    chained: Bools
    samples: Bools
    requests: Int64s
    departures: Int32s
    """Times that the request had left work when the step was planned."""
    admitted: tuple[Transition, ...]


class Committed(NamedTuple):
    """The columns of a StepCommitted, in the order of its step's segments."""

    events: UInt8s
    tokens: Int32s
    live: Bools
    """The request has not left work since the step was planned."""
    drew: Bools
    """The segment gave its request tokens."""
    counts: Int32s
    """Tokens that the segment gave its request."""
    ends: Int32s
    """Positions of the segment's request that are computed and wanted: of a run, those before what was not accepted."""


_NONE = np.empty(0, np.int32)
_NOBODY: Indices = np.empty(0, np.intp)
_FALSE = _NONE.astype(bool)
NO_STEP = Step(0, _NOBODY, _NONE, _NONE, _NONE, _FALSE, _FALSE, _NONE.astype(np.int64), _NONE, ())
NOT_COMMITTED = Committed(_NONE.astype(np.uint8), _NONE, _FALSE, _FALSE, _NONE, _NONE)


class History:
    """Facts by row, by request and by step. Arrays are indexed by row; a row nobody has means nothing."""

    def __init__(self) -> None:
        self.number = -1
        """Of the current record."""
        self.beginning: Beginning | None = None
        """Where the run was when the first record, a Checkpoint, was taken; None: at its start."""
        self.started: Started | None = None
        self.closed: Closed | None = None
        self.answered = False
        """All terminal replies are in the trace: the gateway has said how many there were."""
        self.open: dict[int, int] = {}
        """Live requests: request -> row."""
        self.in_flight: dict[int, Step] = {}
        """Planned and not resolved, oldest first."""
        self.step = NO_STEP
        """The step that the current record plans, commits or rolls back."""
        self.committed = NOT_COMMITTED
        """What the current record, a StepCommitted, says."""
        self.restored: tuple[Transition, ...] = ()
        """Admissions that the current record, a StepRolledBack, undoes."""
        self.request: Int64s = np.zeros(64, np.int64)
        self.num_prompt: Int32s = np.zeros(64, np.int32)
        self.num_wanted: Int32s = np.zeros(64, np.int32)
        """Output tokens asked for."""
        self.num_output: Int32s = np.zeros(64, np.int32)
        """Output tokens committed."""
        self.departures: Int32s = np.zeros(64, np.int32)
        """Times that a request in this row has left work."""
        self.working: Bools = np.zeros(64, np.bool_)
        self.num_rows = 0
        self.outputs: Int32s = np.zeros((64, 64), np.int32)
        """Output tokens, [row, n]; those beyond `num_output` mean nothing."""
        self.submissions: dict[int, Submitted] = {}
        """Of live requests, by row."""
        self.pages = PageUse()
        self.cache = CacheView()
        self.derived: dict[str, Any] = {}
        """What a property has worked out about the current record, for others that need the same."""
        self._admissions: list[Transition] = []
        self._last_step = 0

    @property
    def num_tokens(self) -> Int32s:
        """Known tokens by row: prompt and committed output."""
        return self.num_prompt + self.num_output

    def output(self, row: int, count: int | None = None) -> Int32s:
        """The first `count` output tokens of `row` (all that are committed), int32 [n]; a copy."""
        committed = int(self.num_output[row])
        return self.outputs[row, : committed if count is None else min(count, committed)].copy()

    def advance(self, record: Record) -> None:
        """Take one record in. Raises Malformed."""
        self.number += 1
        if self.derived:
            self.derived.clear()
        if self.closed is not None and not isinstance(record, Answered | AnswersClosed):
            raise Malformed("records follow the one that closes the trace")
        match record:
            case StepPlanned():
                self._planned(record)
            case StepCommitted():
                self._committed(record)
            case Transition():
                self._moved(record)
            case Submitted():
                self._submitted(record)
            case StepRolledBack():
                self._rolled_back(record)
            case Cached() if self.started is not None:  # else it is not known what was cached before
                self.cache.advance(record)
            case Started():
                self._start(record)
            case Closed():
                self.closed = record
            case AnswersClosed():
                self.answered = True
            case Checkpoint(state=bytes()) if not self.number:
                self._begin(beginning_of(record))

    def _begin(self, beginning: Beginning) -> None:
        """The records so far are gone, but for what they came to."""
        self.beginning = beginning
        table = beginning.table
        self._start(beginning.started)
        self._last_step = beginning.step
        for arrival in beginning.arrivals:
            self._submitted(arrival)
            row, output = arrival.row, table.output(arrival.row)
            self.num_output[row] = len(output)
            self.outputs = roomy(self.outputs, 0, len(output))
            self.outputs[row, : len(output)] = output
        if len(self.open) != len(beginning.rows):
            raise Malformed("a checkpoint has two live requests of one number")
        self.cache.advance(Cached(beginning.cached))
        if any(self.cache.faults):
            raise Malformed(f"a checkpoint's cache contradicts itself: {self.cache.faults}")
        for row in beginning.working:
            slot = int(table.slot[row])
            self.working[row] = True
            self.pages.begin(row, slot, beginning.pages[slot].tolist(), self.cache.namespace)

    def _start(self, record: Started) -> None:
        if record.page_size < 1 or not 0 < record.num_pages <= MOST_PAGES:
            raise Malformed(f"an engine of {record.num_pages} pages of {record.page_size} tokens")
        self.started = record
        self.pages.size(record.num_pages, record.page_size)

    def _submitted(self, record: Submitted) -> None:
        row = record.row
        if not 0 <= row < MOST_ROWS:
            raise Malformed(f"request {record.request} has row {row}", record.request)
        if row >= len(self.request):
            self.request = fitted(self.request, row + 1)
            self.num_prompt = fitted(self.num_prompt, row + 1)
            self.num_wanted = fitted(self.num_wanted, row + 1)
            self.num_output = fitted(self.num_output, row + 1)
            self.departures = fitted(self.departures, row + 1)
            self.working = fitted(self.working, row + 1)
            self.outputs = roomy(self.outputs, len(self.request), 0)
        self.num_rows = max(self.num_rows, row + 1)
        self.open[record.request] = row
        self.submissions[row] = record
        self.request[row] = record.request
        self.num_prompt[row] = len(int32s(record.tokens))
        self.num_wanted[row] = record.sampling.max_new_tokens
        self.num_output[row] = 0
        self.working[row] = False

    def _moved(self, record: Transition) -> None:
        row, event = record.row, record.event
        if not 0 <= row < self.num_rows:
            raise Malformed(f"request {record.request} moves in row {row}, which no request was given", record.request)
        if event == Event.ADMIT:
            self.working[row] = True
            self._admissions.append(record)
        elif event == Event.RECEIVE:
            self.working[row] = True
            self.num_output[row] += 1
        elif event in DEPARTURES:
            self._departed(row)
            if event in (Event.FINISH, Event.ABORT):
                self.open.pop(record.request, None)

    def _departed(self, row: int) -> None:
        self.departures[row] += 1
        self.working[row] = False
        self.pages.left(row, max(self.in_flight, default=0))

    def _planned(self, record: StepPlanned) -> None:
        if record.step <= self._last_step:
            raise Malformed(f"step {record.step} is planned after step {self._last_step}")
        rows, starts = int32s(record.rows).astype(np.intp), int32s(record.starts)
        slots, lengths = int32s(record.slots), int32s(record.lengths)
        chained, samples = uint8s(record.chained) != 0, uint8s(record.samples) != 0
        if not len(rows) == len(starts) == len(slots) == len(lengths) == len(chained) == len(samples):
            raise Malformed(f"the columns of step {record.step} differ in length")
        listed = rows.tolist()
        if listed and not 0 <= min(listed) <= max(listed) < self.num_rows:
            raise Malformed(f"step {record.step} names a row that no request was given")
        self._last_step = record.step
        self.step = Step(
            record.step,
            rows,
            slots,
            starts,
            starts + lengths,
            chained,
            samples,
            self.request[rows],
            self.departures[rows],
            tuple(self._admissions),
        )
        self._admissions.clear()
        pages = int32s(record.page_slots), int32s(record.page_indices), int32s(record.pages)
        if not len(pages[0]) == len(pages[1]) == len(pages[2]):
            raise Malformed(f"the page columns of step {record.step} differ in length")
        self.pages.planned(record.step, (rows, slots, self.step.ends), self.step.admitted, pages, self.in_flight)
        self.in_flight[record.step] = self.step

    def _committed(self, record: StepCommitted) -> None:
        if record.step != next(iter(self.in_flight), None):
            raise Malformed(f"step {record.step} is committed, but it is not the oldest in flight")
        step = self.step = self.in_flight.pop(record.step)
        self.pages.committed(record.step)
        events, tokens = uint8s(record.events), int32s(record.tokens)
        if len(events) != len(step.rows):
            raise Malformed(f"step {record.step} has {len(step.rows)} segments, its commit {len(events)}")
        counts = step.samples.astype(np.int32)
        if record.counts is not None:
            counts = np.array(int32s(record.counts))
            if len(counts) != len(step.rows) or ((counts > 0) != step.samples).any():
                raise Malformed(f"step {record.step} draws for {np.flatnonzero(step.samples)}, and counts {counts}")
        if len(tokens) != counts.sum():
            raise Malformed(f"step {record.step} draws {counts.sum()} tokens, and got {len(tokens)}")
        if len(events) and int(events.max()) >= len(Event):
            raise Malformed(f"the commit of step {record.step} has an event {events.max()}, which is none")
        live = self.departures[step.rows] == step.departures
        drew = (events == _TOKEN) | (events == _FIRST_TOKEN)
        ends = step.ends
        if record.counts is None:
            self._append(step.rows[step.samples & drew], tokens[drew[step.samples]])
        else:
            self._append_runs(step.rows[drew], tokens[np.repeat(drew, counts)], counts[drew])
            ends = np.where(step.chained, np.minimum(step.starts + counts, ends), ends).astype(np.int32)
            newest = max(self.in_flight, default=0)
            for row, end in zip(step.rows[live & (ends < step.ends)], ends[live & (ends < step.ends)], strict=True):
                self.pages.trimmed(int(row), int(end), newest)
        counts[~drew] = 0
        self.num_output[step.rows[drew]] += np.maximum(counts[drew], 1)
        self.committed = Committed(events, tokens, live, drew, counts, ends)

    def _append(self, rows: Indices, tokens: Int32s) -> None:
        if not len(rows):
            return
        at = self.num_output[rows]
        width = int(at.max()) + 1
        if width > self.outputs.shape[1]:
            self.outputs = roomy(self.outputs, 0, 2 * width)
        self.outputs[rows, at] = tokens

    def _append_runs(self, rows: Indices, tokens: Int32s, counts: Int32s) -> None:
        # Runs are few, and a row has one.
        first = np.cumsum(counts) - counts
        for place in range(int(counts.max(initial=0))):
            longer = counts > place
            at = self.num_output[rows[longer]]
            self.num_output[rows[longer]] += place
            self._append(rows[longer], tokens[first[longer] + place])
            self.num_output[rows[longer]] = at

    def _rolled_back(self, record: StepRolledBack) -> None:
        if record.step != next(reversed(self.in_flight), None):
            raise Malformed(f"step {record.step} is rolled back, but it is not the newest in flight")
        step = self.step = self.in_flight.pop(record.step)
        departures = dict(zip(step.rows.tolist(), step.departures.tolist(), strict=True))
        self.restored = tuple(
            admission for admission in step.admitted if departures.get(admission.row) == self.departures[admission.row]
        )
        self.pages.rolled_back(record.step)
        for admission in self.restored:
            self._departed(admission.row)
