"""Property `legal_lifecycle`: requests take only edges of the table, and each has exactly one end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pawl.lifecycle.machine import HAS_OUTPUT, TABLE, IllegalTransition, UInt8s, advance, advance_rows
from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.growing import fitted
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.replies import Replies
from pawl.lifecycle.records import (
    STOPPED,
    Answered,
    AnswersClosed,
    StepCommitted,
    StepRolledBack,
    Submitted,
    Transition,
)
from pawl.lifecycle.states import Cause, Event, State

_EDGES = {(e.source, e.event, cause): (e.target, e.guard) for e in TABLE for cause in e.causes}
_STALE_TOKEN = int(Event.STALE_TOKEN)
_IN_STEPS = frozenset({Event.CHUNK, Event.FIRST_TOKEN, Event.TOKEN, Event.STALE_TOKEN})


def _is_met(guard: str, row: int, history: History) -> bool:
    """Whether the request has what an edge takes."""
    return bool(history.num_output[row] if guard == HAS_OUTPUT else not history.num_wanted[row])


class LegalLifecycle(Property):
    """Each edge taken is in the table, starts where the last one ended, and meets its guard; a step's token is stale
    exactly when its request left work after the step was planned; nothing is open when the engine has stopped; each
    request that has ended has exactly one terminal reply."""

    name = "legal_lifecycle"

    def __init__(self) -> None:
        self._state: UInt8s = np.zeros(64, np.uint8)
        self._replies = Replies()
        self._holder: dict[int, int] = {}
        """row -> the request it was given to last"""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._replies.begin(beginning)
        for row in beginning.rows:
            self._state[row] = beginning.table.state[row]
        return found

    @on(Answered)
    def _answered(self, record: Answered, history: History) -> Sequence[Violation]:
        fault = self._replies.answered(record)
        return () if fault is None else (self.violation(history, *fault),)

    @on(AnswersClosed)
    def _all_answered(self, record: AnswersClosed, history: History) -> Sequence[Violation]:
        fault = self._replies.closed(record)
        return () if fault is None else (self.violation(history, *fault),)

    def finish(self, history: History) -> Sequence[Violation]:
        if history.closed is None or history.closed.reason != STOPPED:
            return ()
        text = "the request had no terminal edge when the engine stopped"
        never_ended = [self.violation(history, text, request) for request in history.open]
        missing = self._replies.finish(history.pairing, history.started)
        return [*never_ended, *(self.violation(history, *fault) for fault in missing)]

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        self._replies.submitted(record)
        self._state = fitted(self._state, record.row + 1)
        self._state[record.row] = State.NEW
        before = self._holder.get(record.row)
        self._holder[record.row] = record.request
        if before is None or before == record.request or before not in history.open:
            return ()
        return (self.violation(history, f"row {record.row} is given away while request {before} has it", before),)

    @on(Transition)
    def _moved(self, record: Transition, history: History) -> Sequence[Violation]:
        row, source, event = record.row, record.source, record.event
        owner, state = int(history.request[row]), int(self._state[row])
        self._state[row] = record.target
        target, guard = _EDGES.get((source, event, record.cause), (None, None))
        plain = owner == record.request and source == state and target == record.target and event not in _IN_STEPS
        if plain and (guard is None or _is_met(guard, row, history)):
            return ()
        return tuple(self._faults(record, history, owner, State(state)))

    def _faults(self, record: Transition, history: History, owner: int, state: State) -> Iterator[Violation]:
        request, event, cause = record.request, record.event, record.cause
        if owner != request:
            yield self.violation(history, f"request {request} moves in row {record.row}, which is {owner}'s", request)
            return
        if event in _IN_STEPS:
            yield self.violation(history, f"{event.name} outside of a committed step", request)
        if record.source != state:
            text = f"{event.name} leaves {record.source.name}, but the request was in {state.name}"
            yield self.violation(history, text, request)
            return
        try:
            target = advance(state, event, cause, request)
        except IllegalTransition as error:
            yield self.violation(history, str(error), request)
            return
        if target != record.target:
            text = f"{event.name} leads from {state.name} to {target.name}, not to {record.target.name}"
            yield self.violation(history, text, request)
        yield from self._guard(record, history)

    def _guard(self, record: Transition, history: History) -> Iterator[Violation]:
        _, guard = _EDGES.get((record.source, record.event, record.cause), (None, None))
        if guard is not None and not _is_met(guard, record.row, history):
            text = f"{record.event.name}({record.cause}) in {record.source.name} needs its guard {guard}"
            yield self.violation(history, text, record.request)

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        step, committed = history.step, history.committed
        rows, events = step.rows, committed.events
        found: list[Violation] = []
        wrong = (events == _STALE_TOKEN) == committed.live
        if 1 in wrong.tobytes():
            index = int(wrong.argmax())
            fact = "has not left work" if committed.live[index] else "has left work"
            text = f"{Event(events[index]).name} for a request that {fact} since step {step.step} was planned"
            found.append(self.violation(history, text, int(step.requests[index])))
        moved = step.requests != history.request[rows]
        if 1 in moved.tobytes():
            index = int(moved.argmax())
            text = f"row {rows[index]} was given away while step {step.step}, which names it, was in flight"
            found.append(self.violation(history, text, int(step.requests[index])))
        try:
            self._state[rows] = advance_rows(self._state[rows], events, Cause.NONE, step.requests)
        except IllegalTransition as error:
            found.append(self.violation(history, str(error), error.request))
        return found

    @on(StepRolledBack)
    def _rolled_back(self, record: StepRolledBack, history: History) -> Sequence[Violation]:
        found: list[Violation] = []
        for admission in history.restored:
            state = State(int(self._state[admission.row]))
            try:
                self._state[admission.row] = advance(state, Event.RESTORE, Cause.STEP_LOST, admission.request)
            except IllegalTransition as error:
                found.append(self.violation(history, str(error), admission.request))
        return found
