"""What happened when: a trace as intervals of requests and steps. What viewers draw is made from this."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pawl.lifecycle.records import (
    Closed,
    Gap,
    PageCounts,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
    int32s,
    num_tokens,
    uint8s,
)
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import EVERY
from pawl.lifecycle.states import Cause, Event, State

WAITING = frozenset(state for state in State if state.name.startswith("QUEUED"))
"""States in which a request holds no slot yet, or has lost it."""


class Interval(msgspec.Struct):
    """A request was in one state."""

    state: State
    start: float
    """Monotonic seconds, as everywhere here."""
    end: float


class RequestLine(msgspec.Struct, kw_only=True):
    """The life of one request."""

    request: int
    rid: str
    num_prompt: int
    namespace: str
    submitted: float
    sampling: SamplingParameters
    priority: int
    intervals: list[Interval] = msgspec.field(default_factory=list)
    ended: float | None = None
    reached: State = State.NEW
    """The last state it was in."""
    cause: Cause = Cause.NONE
    """Why it ended."""
    num_output: int = 0
    num_drawn: int = 0
    """Tokens committed to it; more than `num_output` where a stop string cut the end."""
    num_cached: int = 0
    most_cached: int = EVERY
    """Of these, so many at the most: see `RequestInfo`."""
    num_retractions: int = 0
    first_token: float | None = None
    """When the step that drew the first token was committed."""
    last_token: float | None = None
    largest_gap: float = 0.0
    """The longest time between two tokens, seconds."""
    steps: list[list[int]] = msgspec.field(default_factory=list)
    """Steps that were planned with a segment of this request, as runs [first, last]."""

    @property
    def waited(self) -> float:
        """Seconds in a state of waiting, first admission and returns together."""
        return sum(one.end - one.start for one in self.intervals if one.state in WAITING)

    @property
    def mean_gap(self) -> float | None:
        """Seconds between two tokens on average; None with fewer than two tokens."""
        if self.first_token is None or self.last_token is None or self.num_drawn < 2:
            return None
        return (self.last_token - self.first_token) / (self.num_drawn - 1)


class StepLine(msgspec.Struct, kw_only=True):
    """The life of one step."""

    step: int
    planned: float
    ended: float | None = None
    committed: bool = False
    num_segments: int
    num_tokens: int
    num_decoding: int
    num_outputs: int = 0
    """Tokens it gave to requests that still wanted them."""
    reason: str = ""
    """Why it was rolled back."""


class PageSample(msgspec.Struct):
    """Pages by class at one time."""

    time: float
    pages: PageCounts


class Timeline(msgspec.Struct, kw_only=True):
    """One run."""

    started: Started | None = None
    closed: Closed | None = None
    requests: list[RequestLine] = msgspec.field(default_factory=list)
    steps: list[StepLine] = msgspec.field(default_factory=list)
    pages: list[PageSample] = msgspec.field(default_factory=list)
    gaps: list[Gap] = msgspec.field(default_factory=list)
    end: float = 0.0
    """Time of the last record."""

    @property
    def start(self) -> float:
        """Time of the first thing that happened."""
        if self.started is not None:
            return self.started.time
        return min([line.submitted for line in self.requests] + [line.planned for line in self.steps], default=0.0)


def timeline(records: Iterable[Record]) -> Timeline:
    """The timeline of these records. It never judges: what does not fit is left out."""
    return _Builder().build(records)


class _Builder:
    def __init__(self) -> None:
        self.made = Timeline()
        self._in_row: dict[int, RequestLine] = {}
        self._in_flight: dict[int, tuple[StepLine, list[int]]] = {}
        self._admitted: list[RequestLine] = []
        """Since the last step was planned."""
        self._admitted_by: dict[int, list[RequestLine]] = {}

    def build(self, records: Iterable[Record]) -> Timeline:
        for record in records:
            self._take(record)
        for line in self.made.requests:
            if line.ended is None and line.intervals:
                line.intervals[-1].end = self.made.end
        return self.made

    def _take(self, record: Record) -> None:
        made = self.made
        made.end = max(made.end, getattr(record, "time", 0.0))
        match record:
            case Started():
                made.started = record
            case Submitted():
                self._in_row[record.row] = line = RequestLine(
                    request=record.request,
                    rid=record.rid,
                    num_prompt=len(int32s(record.tokens)),
                    namespace=record.namespace,
                    submitted=record.time,
                    sampling=record.sampling,
                    priority=record.priority,
                )
                made.requests.append(line)
            case Transition():
                self._moved(record)
            case StepPlanned():
                self._planned(record)
            case StepCommitted():
                self._committed(record)
            case StepRolledBack() if record.step in self._in_flight:
                self._lost(record)
            case Gap():
                made.gaps.append(record)
            case Closed():
                made.closed = record
            case _:
                pass

    def _enter(self, line: RequestLine, state: State, time: float) -> None:
        if line.intervals:
            line.intervals[-1].end = time
        line.reached = state
        if not state.terminal:
            line.intervals.append(Interval(state, time, time))

    def _moved(self, record: Transition) -> None:
        line = self._in_row.get(record.row)
        if line is None or line.request != record.request:
            return
        self._enter(line, record.target, record.time)
        line.num_retractions += record.event == Event.RETRACT
        if record.event == Event.ADMIT:
            self._admitted.append(line)
            if not line.num_retractions:
                line.num_cached = min(record.num_cached or 0, line.most_cached)
        elif record.num_cached is not None and record.event in (Event.GRANT, Event.RECEIVE):
            line.most_cached = record.num_cached
        if record.target.terminal:
            line.ended, line.cause = record.time, record.cause
            if record.num_output is not None:
                line.num_output = record.num_output

    def _lost(self, record: StepRolledBack) -> None:
        step, _ = self._in_flight.pop(record.step)
        step.ended, step.reason = record.time, record.reason
        for line in self._admitted_by.pop(record.step, ()):
            if line.reached == State.PREFILLING:
                # Its admission is undone, without a Transition of its own.
                self._enter(line, State.QUEUED, record.time)

    def _planned(self, record: StepPlanned) -> None:
        rows, lengths = int32s(record.rows).tolist(), int32s(record.lengths)
        lines = [self._in_row.get(row) for row in rows]
        step = StepLine(
            step=record.step,
            planned=record.time,
            num_segments=len(rows),
            num_tokens=int(lengths.sum()),
            num_decoding=int(uint8s(record.chained).sum()),
        )
        for line in lines:
            if line is not None:
                if line.steps and line.steps[-1][1] == record.step - 1:
                    line.steps[-1][1] = record.step
                else:
                    line.steps.append([record.step, record.step])
        self.made.steps.append(step)
        self._in_flight[record.step] = step, rows
        self._admitted_by[record.step], self._admitted = self._admitted, []

    def _committed(self, record: StepCommitted) -> None:
        step, rows = self._in_flight.pop(record.step, (None, []))
        self._admitted_by.pop(record.step, None)
        if step is None:
            return
        step.ended, step.committed = record.time, True
        self.made.pages.append(PageSample(record.time, record.pages))
        events = uint8s(record.events)
        counts = num_tokens(events, record.counts).tolist()
        for row, event, count in zip(rows, events.tolist(), counts, strict=False):
            line = self._in_row.get(row)
            if line is None or event == Event.STALE_TOKEN:
                continue
            if event == Event.FIRST_TOKEN:
                self._enter(line, State.DECODING, record.time)
            if count:
                step.num_outputs += count
                line.num_output += count
                line.num_drawn += count
                if line.first_token is None:
                    line.first_token = record.time
                elif line.last_token is not None:
                    line.largest_gap = max(line.largest_gap, record.time - line.last_token)
                line.last_token = record.time
