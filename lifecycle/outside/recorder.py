"""Records of a scheduler that is not ours, from what can be seen of it: arrivals, steps, what they gave, and ends.

The records are those of a trace, so that the same properties judge them. Steps come back in the order in which they
were planned. A token that a step drew for a request which was preempted or has ended since counts as dropped.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import NamedTuple

import numpy as np

from pawl.lifecycle.outside.places import Places
from pawl.lifecycle.records import (
    STOPPED,
    Answered,
    AnswersClosed,
    Closed,
    Counts,
    Delivered,
    Gap,
    PageCounts,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
)
from pawl.lifecycle.request import MAX_STOP_TOKENS, SamplingParameters
from pawl.lifecycle.states import Cause, Event, State

QUARANTINE = 256
"""Ends after which the row of a request is given away: what is said of it until then is known to be late."""
TARGETS = {
    Event.SUBMIT: State.QUEUED,
    Event.ADMIT: State.PREFILLING,
    Event.RETRACT: State.QUEUED,
    Event.FINISH: State.FINISHED,
    Event.ABORT: State.ABORTED,
}


class Part(NamedTuple):
    """What one step computes of one request."""

    request: int
    start: int
    length: int
    draws: bool
    """It draws a token, or with drafts some."""
    pages: Sequence[int] | None = None
    """The block table, as far as the step needs it, with any numbers; None: not told."""


@dataclass(eq=False)
class _Row:
    """A request, and the row of the records that is its own."""

    row: int
    num_prompt: int
    phase: State = State.NEW
    num_output: int = 0
    departures: int = 0
    table: list[int] = field(default_factory=list)


class _Flight(NamedTuple):
    parts: tuple[Part, ...]
    departures: tuple[int, ...]
    """Of each, when it was planned."""
    admitted: frozenset[int]
    """Requests that came in with it."""
    num_pages: tuple[int, ...]
    """Of each, before it was planned."""


class OutsideRecorder:
    """Makes the records, and hands each to `emit`. Requests are named by numbers from 1, in order of arrival. What is
    told of a request that was never submitted raises KeyError."""

    def __init__(self, emit: Callable[[Record], object]) -> None:
        self._emit = emit
        self._rows: dict[int, _Row] = {}
        self._ended: deque[int] = deque()
        self._free_rows: list[int] = []
        self._in_flight: dict[int, _Flight] = {}
        self._admitted: set[int] = set()
        """Since the last step was planned."""
        self._counts: Counter[str] = Counter()
        self._forgotten: list[int] = []
        self._num_pages = 0
        self._places = Places(0)
        self._step = 0
        self.longest = 0
        """Output tokens of a request, at the most."""
        self.time = 0.0
        """Of what is told next."""

    def started(self, *, scheduler: str, num_pages: int, page_size: int, reproducible: bool, wall: float = 0.0) -> None:
        """`num_pages` 0: not known. `reproducible`: what a request gets depends on nothing but the request."""
        self._num_pages = num_pages
        self._places = Places(num_pages)
        config = {"deterministic": reproducible, "outside": scheduler}
        self._emit(
            Started(
                version="",
                model="",
                config=config,
                num_pages=self._total,
                page_size=page_size,
                num_slots=1,
                seed=0,
                time=self.time,
                wall=wall,
            )
        )

    def submitted(
        self,
        request: int,
        prompt: Sequence[int],
        max_new_tokens: int,
        *,
        rid: str = "",
        stop_token_ids: Sequence[int] = (),
        eos_token_ids: Sequence[int] = (),
        priority: int = 0,
        namespace: str = "",
    ) -> None:
        """A request has come, whose tokens are the likeliest ones."""
        if request in self._rows:  # submitted twice: one row for both
            heappush(self._free_rows, self._rows.pop(request).row)
        row = heappop(self._free_rows) if self._free_rows else len(self._rows)
        self._rows[request] = _Row(row, len(prompt))
        self._counts["received"] += 1
        self._counts["prompt_tokens"] += len(prompt)
        sampling = SamplingParameters(
            temperature=0.0,
            max_new_tokens=max_new_tokens,
            stop_token_ids=tuple([*eos_token_ids, *stop_token_ids][:MAX_STOP_TOKENS]),
            eos_token_ids=tuple(eos_token_ids),
        )
        self._emit(
            Submitted(
                request=request,
                row=row,
                rid=rid,
                tokens=np.array(prompt, np.int32),
                sampling=sampling,
                priority=priority,
                namespace=namespace,
                deadline=None,
                time=self.time,
            )
        )
        self._move(request, Event.SUBMIT)

    def admitted(self, request: int, num_cached: int) -> None:
        """It got memory, and begins behind so many tokens that were cached."""
        self._rows[request].table.clear()
        self._admitted.add(request)
        self._move(request, Event.ADMIT, num_cached=num_cached)

    def preempted(self, request: int, *, keeps: bool = False) -> None:
        """It lost its memory, and waits again. `keeps`: what steps in flight draw for it counts all the same; records
        have no words for that, and end there if there are such steps."""
        at_work = any(request in self.requests_of(step) for step in self._in_flight)
        if keeps and at_work:
            reason = "a request keeps what steps in flight draw although it lost its memory, which no record can say"
            self._emit(Gap(1, reason))
        self._counts["retractions"] += 1
        self._depart(request)
        self._move(request, Event.RETRACT, Cause.MEMORY)

    def planned(self, step: int, parts: Sequence[Part]) -> None:
        """A step with any parts was launched. A request that waits is admitted by it, behind what its part does not
        compute."""
        self._step = step
        for part in parts:
            if self._rows[part.request].phase is State.QUEUED:
                self.admitted(part.request, part.start)
        num_pages = tuple([len(self._rows[part.request].table) for part in parts])
        entries = [entry for part in parts for entry in self._entries(part)]
        rows = np.array([self._rows[part.request].row for part in parts], np.int32)
        slots, indices, pages = np.array(entries, np.int32).reshape(-1, 3).T
        self._emit(
            StepPlanned(
                step=step,
                time=self.time,
                rows=rows,
                slots=rows,
                starts=np.array([part.start for part in parts], np.int32),
                lengths=np.array([part.length for part in parts], np.int32),
                chained=np.array([self._goes_on(part) for part in parts], np.bool_),
                samples=np.array([part.draws for part in parts], np.bool_),
                page_slots=np.ascontiguousarray(slots),
                page_indices=np.ascontiguousarray(indices),
                pages=np.ascontiguousarray(pages),
            )
        )
        departures = tuple([self._rows[part.request].departures for part in parts])
        self._in_flight[step] = _Flight(tuple(parts), departures, frozenset(self._admitted), num_pages)
        self._admitted.clear()

    def committed(self, step: int, tokens: Mapping[int, Sequence[int]], pages: PageCounts | None = None) -> None:
        """The oldest step in flight is done; `tokens`: what it drew for each of its parts that draw. Raises KeyError
        for a step that is not in flight."""
        flight = self._in_flight.pop(step)
        events, drawn, counts = [], list[int](), []
        for part, departures in zip(flight.parts, flight.departures, strict=True):
            row, own = self._rows[part.request], tokens.get(part.request, ()) if part.draws else ()
            drawn += own
            counts.append(len(own))
            if departures != row.departures:
                events.append(Event.STALE_TOKEN)
            elif not own:
                events.append(Event.CHUNK)
            else:
                events.append(Event.TOKEN if row.phase is State.DECODING else Event.FIRST_TOKEN)
                row.phase = State.DECODING
                row.num_output += len(own)
                self.longest = max(self.longest, row.num_output)
        self._emit(
            StepCommitted(
                step=step,
                time=self.time,
                events=np.array(events, np.uint8),
                tokens=np.array(drawn, np.int32),
                pages=pages if pages is not None and self._num_pages else PageCounts(self._total, 0, 0, 0, 0),
                counts=np.array(counts, np.int32) if max(counts) > 1 else None,
            )
        )

    def lost(self, step: int, reason: str = "") -> None:
        """The newest step in flight was not computed."""
        flight = self._in_flight.pop(step)
        for part, departures, num_pages in zip(flight.parts, flight.departures, flight.num_pages, strict=True):
            row = self._rows[part.request]
            if departures == row.departures:
                del row.table[num_pages:]
                if part.request in flight.admitted:
                    self._depart(part.request)
                    row.phase = State.QUEUED
        self._emit(StepRolledBack(step, reason, self.time))

    def finished(self, request: int, cause: Cause, told: int | None = None) -> None:
        """It has ended, and its client was told so many output tokens; None: as many as were committed."""
        self._counts["finished"] += 1
        self._end(request, Event.FINISH, cause, told)

    def aborted(self, request: int, cause: Cause = Cause.CLIENT, told: int | None = None) -> None:
        """Somebody has ended it."""
        self._emit(Delivered("abort", {"requests": [request], "cause": cause}, 0, self.time))
        self._counts["aborted"] += 1
        self._end(request, Event.ABORT, cause, told)

    def stopped(self, pages: PageCounts | None = None) -> None:
        """All is over."""
        live = sum(not row.phase.terminal for row in self._rows.values())
        names = ("received", "finished", "aborted", "prompt_tokens", "output_tokens", "retractions")
        counts = Counts(**{name: self._counts[name] for name in names}, live=live)
        self._emit(Closed(STOPPED, counts, pages if self._num_pages else None))
        self._emit(AnswersClosed(self._counts["answers"], self.time))

    @property
    def _total(self) -> int:
        """Pages, of which an engine has one at least."""
        return max(self._num_pages, 1)

    @property
    def num_rows(self) -> int:
        """Requests that are kept."""
        return len(self._rows)

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    def has_ended(self, request: int) -> bool:
        """Raises KeyError for one that is not kept."""
        return self._rows[request].phase.terminal

    def requests_of(self, step: int) -> frozenset[int]:
        """Those of a step in flight. Raises KeyError."""
        return frozenset(part.request for part in self._in_flight[step].parts)

    def take_forgotten(self) -> list[int]:
        """Requests that are kept no longer, since this was asked last."""
        forgotten, self._forgotten = self._forgotten, []
        return forgotten

    # ---- parts of these ----

    def _goes_on(self, part: Part) -> bool:
        """Whether its input is the token drawn last, and drafts behind it."""
        row = self._rows[part.request]
        return part.draws and row.phase is State.DECODING and part.start + 1 >= row.num_prompt + row.num_output

    def _entries(self, part: Part) -> list[tuple[int, int, int]]:
        """(row, index, page) of what is new in its block table."""
        row, known = self._rows[part.request], self._rows[part.request].table
        pages = [self._places.of(page) for page in part.pages or ()] if self._num_pages else []
        new = [(row.row, index, page) for index, page in enumerate(pages) if known[index : index + 1] != [page]]
        row.table = pages + known[len(pages) :]
        return new

    def _depart(self, request: int) -> None:
        row = self._rows[request]
        row.departures += 1
        row.table.clear()

    def _end(self, request: int, event: Event, cause: Cause, told: int | None) -> None:
        row = self._rows[request]
        self._depart(request)
        if not row.phase.terminal:
            self._counts["output_tokens"] += row.num_output
            self._ended.append(request)
        self._move(request, event, cause, num_output=row.num_output)
        self._counts["answers"] += 1
        count = row.num_output if told is None else told
        self._emit(Answered(request, cause, count, self.time, self._counts["answers"]))
        if len(self._ended) > QUARANTINE:
            oldest = self._ended.popleft()
            heappush(self._free_rows, self._rows.pop(oldest).row)
            self._forgotten.append(oldest)

    def _move(
        self,
        request: int,
        event: Event,
        cause: Cause = Cause.NONE,
        *,
        num_cached: int | None = None,
        num_output: int | None = None,
    ) -> None:
        row, target = self._rows[request], TARGETS[event]
        edge = (row.phase, event, target, cause, self._step, self.time, num_cached, num_output)
        self._emit(Transition(request, row.row, *edge))
        row.phase = target
