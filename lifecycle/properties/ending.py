"""Properties of how requests end: `incarnation`, `silence_after_abort`, `abort_is_total`, `stream_equals_result`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pawl.lifecycle.numbers import Newest
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import (
    Answered,
    Contained,
    Delivered,
    Started,
    StepPlanned,
    Submitted,
    Transition,
)
from pawl.lifecycle.states import ABORT_CAUSES, Cause, Event


class Incarnation(Property):
    """A duplicate number is refused, and nothing reaches a successor that was meant for another: a number is given
    once, and to an engine of one replica in the order of arrival; an event for a request that has ended is none of the
    request that has its row now, and no text stops a request that is still to come."""

    name = "incarnation"

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._before = Newest()
        """Those that came before the first record."""
        self._newest = Newest()
        self._rising = False
        """A request with a lower number has come before it."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._before, newest = beginning.newest, beginning.newest
        self._newest = Newest(newest.short, newest.long)
        self._started(beginning.started, history)
        return found

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        # A router gives a replica what another one has lost, which may have come to that one earlier; and a scheduler
        # that is not ours has numbers as it pleases.
        self._rising = record.config.keys().isdisjoint(("replica", "outside"))
        return ()

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        request, seen = record.request, record.request in self._seen
        if seen or (self._rising and self._newest.has_been(request)):
            text = "was submitted before" if seen else "comes behind one with a higher number, or was submitted before"
            return (self.violation(history, f"request {request} {text}", request),)
        self._seen.add(request)
        self._newest.came(request)
        return ()

    @on(*set(Event) - set(ENDS))
    def _moved(self, record: Transition, history: History) -> Sequence[Violation]:
        if record.request in history.open:
            return ()
        state = "has ended" if self._was_given(record.request) else "was never submitted"
        return (self.violation(history, f"{record.event.name} for a request that {state}", record.request),)

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        match record:
            case Delivered(kind="finish", fields={"request": int(request)}) if not self._was_given(request):
                return (self.violation(history, "its text stops a request that was never submitted", request),)
        return ()

    def _was_given(self, request: int) -> bool:
        return request in self._seen or self._before.has_been(request)


class SilenceAfterAbort(Property):
    """Once an abort is acknowledged no token of that request leaves: its client has had no more than were committed
    when it was aborted."""

    name = "silence_after_abort"

    @on(*ENDS, Answered)
    def _paired(self, record: Transition | Answered, history: History) -> Sequence[Violation]:
        if history.pair is None:
            return ()
        end, answer = history.pair
        if end.event != Event.ABORT or end.num_output is None or answer.num_output <= end.num_output:
            return ()
        text = f"{answer.num_output} tokens left, but {end.num_output} were committed when it was aborted"
        return [self.violation(history, text, end.request)]


class StreamEqualsResult(Property):
    """What left for the client is the result: as many tokens as count, one reason for the end, and not before it; none
    left before the request came. Only text can stop a request at another place than the scheduler knew: the client is
    told so, of no more tokens than there were, and the scheduler once, of as many; and only for a failure, or when the
    engine stops, may the gateway answer in place of the scheduler."""

    name = "stream_equals_result"

    def __init__(self) -> None:
        self._in_place: list[tuple[Cause, Answered]] = []
        """How the scheduler ended it, and what the gateway said instead."""
        self._failed: set[int] = set()
        """Requests that were aborted for a failure."""
        self._cut: dict[int, int] = {}
        """How many tokens the scheduler was told to keep of a request whose text had stopped it."""
        self._told: dict[int, int | None] = {}
        """How many tokens a client was told of, where its text had stopped it; None: it was told another end."""
        self._contained = False
        self._came: dict[int, float] = {}
        """When each request came that has not both its ends, and that no lost replica had."""
        self._stops_at = float("inf")
        """When the engine began to stop."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._contained = True  # it may have been before
        if beginning.draining:
            self._stops_at = float("-inf")
        return ()

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        if not record.num_retractions:
            self._came[record.request] = record.time
        return ()

    @on(Contained)
    def _survived(self, record: Contained, history: History) -> Sequence[Violation]:
        self._contained = True
        return ()

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        match record:
            case Delivered(kind="abort") if record.fields.get("cause") == Cause.INTERNAL:
                self._failed |= _requests(record)
            case Delivered(kind="drain" | "end_all"):
                self._stops_at = min(self._stops_at, record.time)
            case Delivered(kind="finish", fields={"request": int(request), "num_output": int(count)}):
                return self._stopped_by_text(request, count, history)
        return ()

    def _stopped_by_text(self, request: int, count: int, history: History) -> Sequence[Violation]:
        twice, self._cut[request] = request in self._cut, count
        text = "the scheduler is told twice where its text stops"
        found = (self.violation(history, text, request),) if twice else ()
        return (*found, *self._contradicted(request, history))

    @on(Answered)
    def _answered(self, record: Answered, history: History) -> Sequence[Violation]:
        paired = self._paired(record, history)
        if record.cause in ABORT_CAUSES:
            return paired
        self._told[record.request] = record.num_output if record.cause == Cause.STOP_STRING else None
        return (*self._contradicted(record.request, history), *paired)

    @on(*ENDS)
    def _paired(self, record: Transition | Answered, history: History) -> Sequence[Violation]:
        return () if history.pair is None else tuple(self._compare(*history.pair, history))

    def _contradicted(self, request: int, history: History) -> Sequence[Violation]:
        cut, told = self._cut.get(request), self._told.get(request, -1)
        if cut is None or told in (-1, cut):
            return ()
        words = "of another end" if told is None else f"of {told} tokens"
        text = f"its text stopped it after {cut} tokens, its client was told {words}"
        return (self.violation(history, text, request),)

    def _compare(self, end: Transition, answer: Answered, history: History) -> Iterator[Violation]:
        came = self._came.pop(end.request, float("-inf"))
        if answer.num_output and answer.time < came:
            text = f"it came at {came}, and at {answer.time} its client had been told {answer.num_output} tokens"
            yield self.violation(history, text, end.request)
            return
        if answer.cause in (Cause.INTERNAL, Cause.DRAINED):
            if answer.cause != end.cause:
                self._in_place.append((end.cause, answer))
            return
        counted = end.num_output if end.num_output is not None else answer.num_output
        if answer.cause == Cause.STOP_STRING and (end.cause != answer.cause and answer.num_output <= counted):
            return
        if answer.cause != end.cause:
            yield self.violation(history, f"it ended by {end.cause}, its client was told {answer.cause}", end.request)
        if answer.num_output != counted:
            text = f"it ends with {counted} output tokens, {answer.num_output} left for its client"
            yield self.violation(history, text, end.request)
        # A stop string ends it with the client first.
        if answer.time < end.time and answer.cause != Cause.STOP_STRING:
            yield self.violation(history, f"it ended at {end.time}, its client was told at {answer.time}", end.request)

    def finish(self, history: History) -> Sequence[Violation]:
        wrong = [(cause, answer) for cause, answer in self._in_place if not self._may_answer(answer)]
        return [
            self.violation(history, f"it ended by {cause}, its client was told {answer.cause}", answer.request)
            for cause, answer in wrong
        ]

    def _may_answer(self, answer: Answered) -> bool:
        failed = answer.cause == Cause.INTERNAL and (self._contained or answer.request in self._failed)
        # What the gateway says of an actor that it has lost may find the scheduler stopping.
        return failed or answer.time >= self._stops_at


class AbortIsTotal(Property):
    """In every state and queue an abort ends the request within one scheduling step and touches no other. Who comes
    once the engine drains ends as soon, and so does everybody when all are to end."""

    name = "abort_is_total"

    def __init__(self) -> None:
        self._asked: set[int] = set()
        """Live, or not submitted yet, when they were asked to end; or submitted since the engine drains."""
        self._ended, self._drains = set[int](), False
        self._told = False
        """Whether the trace says what the scheduler was told."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._asked, self._told, self._drains = set(beginning.ended_early), True, beginning.draining
        return ()

    @on(Delivered)
    def _ordered(self, record: Delivered, history: History) -> Sequence[Violation]:
        self._drains |= record.kind == "drain"
        if record.kind == "abort":
            self._told = True
            self._asked |= _requests(record) - self._ended
        elif record.kind == "end_all":
            self._asked |= history.open.keys()
        return ()

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        self._asked |= {record.request} if self._drains else set()
        return ()

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        late = self._asked and sorted(self._asked & history.open.keys())
        if not late:
            return ()
        text = f"step {record.step} is planned and the request, which was to be aborted, is live"
        return (self.violation(history, text, late[0]),)

    @on(Event.FINISH)
    def _finished(self, record: Transition, history: History) -> Sequence[Violation]:
        found: Sequence[Violation] = ()
        if record.request in self._asked:
            found = (self.violation(history, "it finished although it was to be aborted", record.request),)
        return (*found, *self._left(record, history))

    @on(Event.ABORT)
    def _left(self, record: Transition, history: History) -> Sequence[Violation]:
        request, asked = record.request, record.request in self._asked
        self._ended.add(request)
        self._asked.discard(request)
        if record.cause not in (Cause.CLIENT, Cause.DISCONNECT) or not self._told or asked:
            return ()
        return (self.violation(history, f"it was aborted by {record.cause}, and nobody had asked for that", request),)


def _requests(record: Delivered) -> set[int]:
    """Whom an abort names; nobody, when it does not say so."""
    named = record.fields.get("requests")
    return {number for number in named if isinstance(number, int)} if isinstance(named, list | tuple) else set()
