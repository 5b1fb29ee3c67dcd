"""What the records so far say: which request a row means, which steps are in flight, how far each request is.

Every property needs these facts, so they are gathered once. Nothing is judged here, with one exception: records that
do not fit together at all (a step that was never planned, a row that nobody has) raise `Malformed`, because nothing
that follows from them means anything.
"""

from __future__ import annotations

import numpy as np

from pawl.lifecycle.properties.beginning import Beginning, beginning_of
from pawl.lifecycle.properties.cache_view import CacheView
from pawl.lifecycle.properties.dispatch import Dispatch, Kind, kind_of, on
from pawl.lifecycle.properties.equals import Equals, Fate, Seen, Unequal
from pawl.lifecycle.properties.growing import fitted, roomy
from pawl.lifecycle.properties.pages import PageUse
from pawl.lifecycle.properties.pairing import Pairing
from pawl.lifecycle.properties.served_weights import ServedWeights
from pawl.lifecycle.properties.steps import (
    NO_STEP,
    NOT_COMMITTED,
    Int64s,
    Malformed,
    Step,
    drawn_of,
    pages_of,
    segments_of,
)
from pawl.lifecycle.properties.steps import Committed as Committed
from pawl.lifecycle.recompute import is_reproducible
from pawl.lifecycle.records import (
    Answered,
    AnswersClosed,
    Bools,
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
    TierTold,
    Transition,
    WeightsMoved,
    int32s,
)
from pawl.lifecycle.requests import Indices
from pawl.lifecycle.states import Event

DEPARTURES = frozenset({Event.RETRACT, Event.RESTORE, Event.FINISH, Event.ABORT})
"""Events after which the tokens of steps in flight are stale."""
_COLUMNS = ("request", "num_prompt", "num_wanted", "num_output", "departures", "working", "_batched")
_AFTER_CLOSED = frozenset[Kind]({Answered, AnswersClosed})

MOST_ROWS = 1 << 20
"""Rows of one table: beyond what any engine has, and arrays of as many still fit."""
MOST_PAGES = 1 << 24
"""Pages of one pool, likewise."""


class History(Dispatch):
    """Facts by row, by request and by step. Arrays are indexed by row; a row nobody has means nothing."""

    def __init__(self) -> None:
        self.number = -1
        self.kind: Kind = Checkpoint
        """Both of the current record."""
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
        self.pages, self.cache, self.weights = PageUse(), CacheView(), ServedWeights()
        self.pairing = Pairing()
        self.pair: tuple[Transition, Answered] | None = None
        """Both ends of a request, where the current record, a terminal edge or reply, is the second of them."""
        self.unequal: Unequal | None = None
        """What the request that the current record ends got, where its equal got something else."""
        self._admissions: list[Transition] = []
        self._last_step = 0
        self._filled_at = -2
        """Number of the last record of pages that came from lower tiers; before all others where there is none."""
        self._equals: Equals | None = None
        """Where the engine has promised that equal requests have equal outputs."""
        self._retracted: set[int] = set()
        """Rows of requests that were retracted."""
        self._warm: set[int] = set()
        """Rows of requests that began with pages of the cache."""
        self._batched: Bools = np.zeros(64, np.bool_)
        """By row: the request was in a step with others."""

    @property
    def num_working(self) -> int:
        """Requests at work."""
        return self.working.tobytes().count(1)

    def known(self, row: int) -> int:
        """Known tokens of a row: prompt and committed output."""
        return self.num_prompt.item(row) + self.num_output.item(row)

    def fate(self, row: int) -> Fate:
        """What the request in `row` went through."""
        return Fate(row in self._retracted, row in self._warm, bool(self._batched[row]))

    def output(self, row: int, count: int | None = None) -> Int32s:
        """The first `count` output tokens of `row` (all that are committed), int32 [n]; a copy."""
        committed = int(self.num_output[row])
        return self.outputs[row, : committed if count is None else min(count, committed)].copy()

    def advance(self, record: Record) -> None:
        """Take one record in. Raises Malformed."""
        self.number += 1
        kind = self.kind = kind_of(record)
        if self.closed is not None and kind not in _AFTER_CLOSED:
            raise Malformed("records follow the one that closes the trace")
        take = self.methods.get(kind)
        if take is not None:
            take(self, record)

    @on(Checkpoint)
    def _checkpoint(self, record: Checkpoint) -> None:
        if record.state is not None and not self.number:
            self._begin(beginning_of(record))

    @on(WeightsMoved)
    def _weights(self, record: WeightsMoved) -> None:
        self.weights.moved(record, self.open.values(), self.submissions, self.num_output)

    def _begin(self, beginning: Beginning) -> None:
        """The records so far are gone, but for what they came to."""
        self.beginning = beginning
        table = beginning.table
        self._start(beginning.started)
        self._last_step = beginning.step
        for arrival in beginning.arrivals:
            self._submitted(arrival)
            self._has_output(arrival.row, table.output(arrival.row))
        self.weights.begin(beginning)
        self.cache.advance(Cached(beginning.cached))
        if any(self.cache.faults):
            raise Malformed(f"a checkpoint's cache contradicts itself: {self.cache.faults}")
        for row in beginning.working:
            slot = int(table.slot[row])
            self.working[row] = True
            self.pages.begin(row, slot, beginning.pages[slot].tolist(), self.cache.namespace)
        infos = [(row, table.info(row)) for row in beginning.rows]
        self._retracted = {row for row, info in infos if info.num_retractions}
        self._warm = {row for row, info in infos if info.num_cached}

    @on(Started)
    def _start(self, record: Started) -> None:
        if record.page_size < 1 or not 0 < record.num_pages <= MOST_PAGES:
            raise Malformed(f"an engine of {record.num_pages} pages of {record.page_size} tokens")
        self.started = record
        self.weights.start(record)
        self.pages.size(record.num_pages, record.page_size)
        self._equals = Equals() if is_reproducible(record) else None

    @on(Submitted)
    def _submitted(self, record: Submitted) -> None:
        row = record.row
        if not 0 <= row < MOST_ROWS:
            raise Malformed(f"request {record.request} has row {row}", record.request)
        if row >= len(self.request):
            for name in _COLUMNS:
                setattr(self, name, fitted(getattr(self, name), row + 1))
            self.outputs = roomy(self.outputs, len(self.request), 0)
        self.num_rows = max(self.num_rows, row + 1)
        self.open[record.request] = row
        self.submissions[row] = record
        self.request[row] = record.request
        self.num_prompt[row] = len(int32s(record.tokens))
        self.num_wanted[row] = record.sampling.max_new_tokens
        self._has_output(row, int32s(record.output))
        self.weights.submitted(record)
        self.working[row] = self._batched[row] = False
        self._warm.discard(row)
        (self._retracted.add if record.num_retractions else self._retracted.discard)(row)

    def _has_output(self, row: int, output: Int32s) -> None:
        self.num_output[row] = count = len(output)
        self.outputs = roomy(self.outputs, 0, count)
        self.outputs[row, :count] = output

    @on(*set(Event) - DEPARTURES - {Event.ADMIT})
    def _moved(self, record: Transition) -> None:
        if not 0 <= record.row < self.num_rows:
            text = f"request {record.request} moves in row {record.row}, which no request was given"
            raise Malformed(text, record.request)

    @on(Event.ADMIT)
    def _admitted(self, record: Transition) -> None:
        self._moved(record)
        self.working[record.row] = True
        self._admissions.append(record)
        if record.num_cached:
            self._warm.add(record.row)

    @on(Event.RETRACT)
    def _lost(self, record: Transition) -> None:
        self._left(record)
        self._retracted.add(record.row)

    @on(Event.RESTORE)
    def _left(self, record: Transition) -> None:
        self._moved(record)
        self._departed(record.row)

    @on(Event.FINISH, Event.ABORT)
    def _ended(self, record: Transition) -> None:
        self._left(record)
        self.open.pop(record.request, None)
        self.pair, self.unequal, row = self.pairing.ended(record), None, record.row
        submitted = self.submissions.get(row)
        if self._equals is None or submitted is None or submitted.request != record.request:
            return
        # What others have drawn some of depends on when the weights were exchanged.
        if self.num_output[row] and row not in self.weights.older:
            tokens = self.output(row, record.num_output)
            self.unequal = self._equals.ended(submitted, Seen(record.request, tokens, self.fate(row)))

    @on(Answered)
    def _answered(self, record: Answered) -> None:
        self.pair = self.pairing.answered(record)

    @on(AnswersClosed)
    def _all_answered(self, record: AnswersClosed) -> None:
        self.answered = True

    @on(Closed)
    def _close(self, record: Closed) -> None:
        self.closed = record

    @on(Cached)
    def _cached(self, record: Cached) -> None:
        if self.started is not None:  # else it is not known what was cached before
            self.cache.advance(record)
            if self._filled_at == self.number - 1:
                self.pages.brought(self.cache.stored)

    @on(TierTold)
    def _told(self, record: TierTold) -> None:
        if record.kind == "filled":
            self._filled_at = self.number

    def _departed(self, row: int) -> None:
        self.departures[row] += 1
        self.working[row] = False
        self.pages.left(row, next(reversed(self.in_flight), 0))

    @on(StepPlanned)
    def _planned(self, record: StepPlanned) -> None:
        if record.step <= self._last_step:
            raise Malformed(f"step {record.step} is planned after step {self._last_step}")
        rows, slots, starts, ends, lengths, chained, samples = segments_of(record)
        try:
            requests = self.request[: self.num_rows][rows]
        except IndexError:
            raise Malformed(f"step {record.step} names a row that no request was given") from None
        self._last_step = record.step
        admitted, departures = tuple(self._admissions), self.departures[rows]
        self.step = Step(record.step, rows, starts, ends, lengths, chained, samples, requests, departures, admitted)
        self._admissions.clear()
        self.pages.planned(record.step, (rows, slots, ends), admitted, pages_of(record), self.in_flight)
        self.in_flight[record.step] = self.step
        if len(rows) > 1:
            self._batched[rows] = True

    @on(StepCommitted)
    def _committed(self, record: StepCommitted) -> None:
        if record.step != next(iter(self.in_flight), None):
            raise Malformed(f"step {record.step} is committed, but it is not the oldest in flight")
        step = self.step = self.in_flight.pop(record.step)
        self.pages.committed(record.step)
        events, drew, tokens, counts = drawn_of(record, step)
        live, rows, ends = self.departures[step.rows] == step.departures, step.rows[drew], step.ends
        if counts is None:
            drawn = step.samples & drew
            self._append(step.rows[drawn], tokens[drew[step.samples]])
            self.num_output[rows] += 1
            counts = drawn.astype(np.int32)
        else:
            self._append_runs(rows, tokens[np.repeat(drew, counts)], counts[drew])
            ends = np.where(step.chained, np.minimum(step.starts + counts, ends), ends).astype(np.int32)
            newest = max(self.in_flight, default=0)
            for row, end in zip(step.rows[live & (ends < step.ends)], ends[live & (ends < step.ends)], strict=True):
                self.pages.trimmed(int(row), int(end), newest)
            counts[~drew] = 0
            self.num_output[rows] += np.maximum(counts[drew], 1)
        self.committed = Committed(events, tokens, live, drew, counts, ends, record.counts is not None)

    def _append(self, rows: Indices, tokens: Int32s) -> None:
        at = self.num_output[rows].astype(np.intp)  # with other integers numpy takes twice as long to find places
        try:
            self.outputs[rows, at] = tokens
        except IndexError:
            self.outputs = roomy(self.outputs, 0, 2 * (int(at.max()) + 1))
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

    @on(StepRolledBack)
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
