"""Property `admission_order`: who is admitted before whom."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from heapq import heappop, heappush
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np

from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.ranks import Ranks
from pawl.lifecycle.records import Started, StepCommitted, StepRolledBack, Transition, int32s
from pawl.lifecycle.requests import NOT_ADMITTED
from pawl.lifecycle.states import Event, State

_Place: TypeAlias = tuple[int, int, int]


class _Prompt(NamedTuple):
    """Of a request at work that had no new token when it was looked at last."""

    num_cached: int
    """Its leading tokens that were cached when it was admitted."""
    num_output: int
    """Its output tokens then: once it has more its prompt is computed."""


class AdmissionOrder(Property):
    """Requests that lost their memory come back before newcomers, in order of their first admission; newcomers start by
    arrival under `fcfs`, by priority and then arrival under `priority`, and by the output that they want and then
    arrival under `lof`. Nobody is passed over but for an adapter or for a page that another computes right now, or a
    lower tier or a prefill replica is to send; nobody begins with a page that another computes right now. An admission
    that is undone gives the place back."""

    name: ClassVar[str] = "admission_order"

    def __init__(self) -> None:
        self._policy = ""
        self._shares = False
        """What one computes is there for others, whole from the first page on."""
        self._prompts: dict[int, _Prompt] = {}
        """Of those at work, by row."""
        self._num_arrivals = 0
        self._arrival: dict[int, int] = {}
        """Live requests, by the place of their arrival."""
        self._ranks = Ranks()
        self._waiting: dict[int, _Place] = {}
        """Those that wait for nothing but room, with their place in the order of admission."""
        self._order: list[tuple[_Place, int]] = []
        """A heap of these, and of some that wait no more or stand elsewhere by now."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        table = beginning.table
        for row in beginning.rows:
            self._arrives(table.info(row).request)
        self._ranks.begin(beginning)
        self._starts(beginning.started, history)
        for row in beginning.rows:
            if table.state[row] == State.QUEUED:
                self._waits(table.info(row).request, row, history)
            elif table.state[row] == State.PREFILLING:
                self._prompts[row] = _Prompt(beginning.num_computed(row), len(table.output(row)))
        return ()

    @on(Started)
    def _starts(self, record: Started, history: History) -> Sequence[Violation]:
        loop: Any = record.config.get("loop")
        settings: dict[str, Any] = loop if isinstance(loop, dict) else {}
        self._policy = str(settings.get("policy", ""))
        self._shares = settings.get("cache") == "radix" and settings.get("window") is None
        return ()

    @on(Event.SUBMIT)
    def _submitted(self, record: Transition, history: History) -> Sequence[Violation]:
        self._arrives(record.request)
        return self._returns(record, history)

    @on(Event.SUBMIT_GRAMMAR)
    def _compiles(self, record: Transition, history: History) -> Sequence[Violation]:
        self._arrives(record.request)
        return ()

    @on(Event.FETCH, Event.LOAD, Event.RESERVE)
    def _fetches(self, record: Transition, history: History) -> Sequence[Violation]:
        self._waiting.pop(record.request, None)
        return ()

    @on(Event.GRAMMAR_READY, Event.FETCHED, Event.LOADED, Event.RECEIVE, Event.RESTORE, Event.RETRACT)
    def _returns(self, record: Transition, history: History) -> Sequence[Violation]:
        self._waits(record.request, record.row, history)
        return ()

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        self._waiting.pop(record.request, None)
        self._ranks.left(record.request)
        self._arrival.pop(record.request, None)
        return ()

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        self._ranks.rolled_back(history)
        for admission in history.restored:
            if admission.request in self._arrival:
                self._waits(admission.request, admission.row, history)
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        self._ranks.committed(history)
        return ()

    @on(Event.ADMIT)
    def _admitted(self, record: Transition, history: History) -> Sequence[Violation]:
        order, waiting = self._order, self._waiting
        waiting.pop(record.request, None)
        mine = self._place(record.request, record.row, history)
        while order and waiting.get(order[0][1]) != order[0][0]:
            heappop(order)
        found = tuple(self._passed_over(record, mine, history)) if order and order[0][0] < mine else ()
        self._prompts.pop(record.row, None)
        if self._shares and self._prompts:
            found += tuple(self._computed_twice(record, history))
        self._prompts[record.row] = _Prompt(record.num_cached or 0, int(history.num_output[record.row]))
        self._ranks.admitted(record.request)
        return found

    def _passed_over(self, record: Transition, mine: _Place, history: History) -> Iterator[Violation]:
        waiting = self._waiting
        for theirs, other in sorted(entry for entry in self._order if entry[0] < mine):
            row = history.open.get(other)
            if row is not None and waiting.get(other) == theirs and not is_being_computed(row, record.row, history):
                text = f"request {record.request} is admitted before it, which was to come first"
                yield self.violation(history, text, other)
                return

    def _computed_twice(self, record: Transition, history: History) -> Iterator[Violation]:
        """The first page that the request is to compute is one that somebody else is about to share."""
        submitted, start = history.submissions.get(record.row), record.num_cached or 0
        count = start + history.pages.page_size
        mine = _known(record.row, history, count)
        if submitted is None or submitted.sampling.needs_whole_prompt or mine is None:
            return
        for row, prompt in list(self._prompts.items()):
            if not history.working[row] or history.num_output[row] != prompt.num_output:
                del self._prompts[row]
            elif _next_page(row, prompt, history) == start and _known(row, history, count) == mine:
                text = f"it begins with the page at position {start}, which request {history.request[row]} computes"
                yield self.violation(history, f"{text} right now", record.request)
                return

    def _arrives(self, request: int) -> None:
        self._arrival[request] = self._num_arrivals
        self._num_arrivals += 1

    def _waits(self, request: int, row: int, history: History) -> None:
        place = self._waiting[request] = self._place(request, row, history)
        heappush(self._order, (place, request))

    def _place(self, request: int, row: int, history: History) -> _Place:
        """In the order of admission, the first is the smallest; equal where the policy may choose."""
        rank = self._ranks.of.get(request, NOT_ADMITTED)
        if rank < NOT_ADMITTED or self._policy not in ("fcfs", "priority", "lof"):
            return rank, 0, 0
        submitted, urgency = history.submissions.get(row), 0
        if submitted is not None and self._policy == "priority":
            urgency = submitted.priority
        elif submitted is not None and self._policy == "lof":
            urgency = submitted.sampling.max_new_tokens
        return rank, -urgency, self._arrival.get(request, 0)


def is_being_computed(row: int, newcomer: int, history: History) -> bool:
    """A request that was at work before `newcomer` begins as `row` does: perhaps this one waits for that to be in the
    cache."""
    size, working = history.pages.page_size, np.flatnonzero(history.working).tolist()
    mine = _known(row, history, size)
    return mine is not None and any(_known(other, history, size) == mine for other in working if other != newcomer)


def _next_page(row: int, prompt: _Prompt, history: History) -> int:
    """Position up to which the row's pages are in the cache."""
    pages, size = history.pages, history.pages.page_size
    if not pages.num_of(row):  # the step that admits it is not launched yet
        return prompt.num_cached
    index = 0
    while pages.page_at(row, index) in history.cache.namespace:
        index += 1
    return index * size


def _known(row: int, history: History, count: int) -> tuple[str, bytes] | None:
    """Namespace and first `count` tokens of the request, where it has more."""
    submitted = history.submissions.get(row)
    if submitted is None or count >= history.known(row):
        return None
    tokens = int32s(submitted.tokens)
    if count > len(tokens):
        tokens = np.concatenate((tokens, history.output(row)))
    return submitted.namespace, tokens[:count].tobytes()
