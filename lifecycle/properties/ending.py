"""Properties of how requests end: `incarnation`, `silence_after_abort`, `abort_is_total`, `stream_equals_result`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pawl.lifecycle.properties.base import ENDS, Property, Violation
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import (
    Answered,
    AnswersClosed,
    Contained,
    Delivered,
    Record,
    StepPlanned,
    Submitted,
    Transition,
)
from pawl.lifecycle.states import ABORT_CAUSES, Cause, Event


class Incarnation(Property):
    """A duplicate number is refused, and nothing reaches a successor that was meant for another: a number is given
    once, an event for a request that has ended is none of the request that has its row now, and no text stops a request
    that is still to come."""

    name = "incarnation"
    observes = (Submitted, Transition, Delivered)

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._newest = 0
        """The highest number given before the first record."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._newest = beginning.newest
        return found

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Submitted(request=request):
                if request in self._seen or request <= self._newest:
                    return [self.violation(history, f"request {request} was submitted before", request)]
                self._seen.add(request)
            case Transition(request=request) if record.event not in ENDS:
                if request not in history.open:
                    state = "has ended" if request in self._seen or request <= self._newest else "was never submitted"
                    return [self.violation(history, f"{record.event.name} for a request that {state}", request)]
            case Delivered(kind="finish", fields={"request": int(request)}):
                if request not in self._seen and request > self._newest:
                    return [self.violation(history, "its text stops a request that was never submitted", request)]
        return ()


class Pairing:
    """Both ends of each request: its terminal edge, and its terminal reply, whichever stands first in the trace."""

    def __init__(self) -> None:
        self._ends: dict[int, Transition] = {}
        self._answers: dict[int, Answered] = {}

    def pair(self, record: Record) -> tuple[Transition, Answered] | None:
        """The pair that this record completes."""
        match record:
            case Transition(event=Event.FINISH | Event.ABORT):
                answer = self._answers.pop(record.request, None)
                if answer is not None:
                    return record, answer
                self._ends[record.request] = record
            case Answered():
                end = self._ends.pop(record.request, None)
                if end is not None:
                    return end, record
                self._answers[record.request] = record
        return None

    def unanswered(self) -> Sequence[int]:
        """Requests that have ended and have no reply."""
        return tuple(self._ends)

    def unended(self) -> Sequence[Answered]:
        """Replies to requests without a terminal edge."""
        return tuple(self._answers.values())


class SilenceAfterAbort(Property):
    """Once an abort is acknowledged no token of that request leaves: its client has had no more than were committed
    when it was aborted."""

    name = "silence_after_abort"
    observes = (*ENDS, Answered)

    def __init__(self) -> None:
        self._pairing = Pairing()

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        both = self._pairing.pair(record)
        if both is None:
            return ()
        end, answer = both
        if end.event != Event.ABORT or end.num_output is None or answer.num_output <= end.num_output:
            return ()
        text = f"{answer.num_output} tokens left, but {end.num_output} were committed when it was aborted"
        return [self.violation(history, text, end.request)]


class StreamEqualsResult(Property):
    """What left for the client is the result: as many tokens as count, one reason for the end, and not before it. Only
    text can stop a request at another place than the scheduler knew: the client is told so, of no more tokens than
    there were, and the scheduler once, of as many; and only for a failure, or when the engine stops, may the gateway
    answer in place of the scheduler."""

    name = "stream_equals_result"
    observes = (*ENDS, Answered, Delivered, Contained)

    def __init__(self) -> None:
        self._pairing = Pairing()
        self._in_place: list[tuple[Cause, Answered]] = []
        """How the scheduler ended it, and what the gateway said instead."""
        self._failed: set[int] = set()
        """Requests that were aborted for a failure."""
        self._cut: dict[int, int] = {}
        """How many tokens the scheduler was told to keep of a request whose text had stopped it."""
        self._told: dict[int, int | None] = {}
        """How many tokens a client was told of, where its text had stopped it; None: it was told another end."""
        self._contained = False
        self._stops_at = float("inf")
        """When the engine began to stop."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._contained = True  # it may have been before
        if beginning.draining:
            self._stops_at = float("-inf")
        return ()

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        found: list[Violation] = []
        match record:
            case Contained():
                self._contained = True
            case Delivered(kind="abort") if record.fields.get("cause") == Cause.INTERNAL:
                self._failed |= _requests(record)
            case Delivered(kind="drain" | "end_all"):
                self._stops_at = min(self._stops_at, record.time)
            case Delivered(kind="finish", fields={"request": int(request), "num_output": int(count)}):
                if request in self._cut:
                    found.append(self.violation(history, "the scheduler is told twice where its text stops", request))
                self._cut[request] = count
                found += self._contradicted(request, history)
            case Answered(request=request) if record.cause not in ABORT_CAUSES:
                self._told[request] = record.num_output if record.cause == Cause.STOP_STRING else None
                found += self._contradicted(request, history)
        both = self._pairing.pair(record)
        return [*found, *self._compare(*both, history)] if both is not None else found

    def _contradicted(self, request: int, history: History) -> Iterator[Violation]:
        cut, told = self._cut.get(request), self._told.get(request, -1)
        if cut is not None and told != -1 and told != cut:
            words = "of another end" if told is None else f"of {told} tokens"
            text = f"its text stopped it after {cut} tokens, its client was told {words}"
            yield self.violation(history, text, request)

    def _compare(self, end: Transition, answer: Answered, history: History) -> Iterator[Violation]:
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
        if answer.cause == Cause.INTERNAL:
            return self._contained or answer.request in self._failed
        return answer.time >= self._stops_at


class AbortIsTotal(Property):
    """In every state and queue an abort ends the request within one scheduling step and touches no other."""

    name = "abort_is_total"
    observes = (Delivered, StepPlanned, *ENDS)

    def __init__(self) -> None:
        self._asked: set[int] = set()
        """Live, or not submitted yet, when they were asked to end."""
        self._ended: set[int] = set()
        self._told = False
        """Whether the trace says what the scheduler was told."""

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._asked, self._told = set(beginning.ended_early), True
        return ()

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Delivered(kind="abort"):
                self._told = True
                self._asked |= _requests(record) - self._ended
            case Transition(event=Event.FINISH | Event.ABORT):
                return tuple(self._left(record, history))
            case StepPlanned() if self._asked:
                late = sorted(self._asked & history.open.keys())
                if late:
                    text = f"step {record.step} is planned and the request, which was to be aborted, is live"
                    return [self.violation(history, text, late[0])]
        return ()

    def _left(self, record: Transition, history: History) -> Iterator[Violation]:
        request, asked = record.request, record.request in self._asked
        self._ended.add(request)
        self._asked.discard(request)
        if record.event == Event.FINISH and asked:
            yield self.violation(history, "it finished although it was to be aborted", request)
        if record.cause in (Cause.CLIENT, Cause.DISCONNECT) and self._told and not asked:
            yield self.violation(history, f"it was aborted by {record.cause}, and nobody had asked for that", request)


def _requests(record: Delivered) -> set[int]:
    """Whom an abort names; nobody, when it does not say so."""
    named = record.fields.get("requests")
    return {number for number in named if isinstance(number, int)} if isinstance(named, list | tuple) else set()


class Fault(NamedTuple):
    """What is wrong, and with which request."""

    explanation: str
    request: int | None


class Replies:
    """Exactly one terminal reply for each request: what `legal_lifecycle` says of what left for the clients."""

    def __init__(self) -> None:
        self._pairing = Pairing()
        self._answered: set[int] = set()
        self._number = 0
        """Of the newest reply."""
        self._beginning: Beginning | None = None
        self._closed = False

    def begin(self, beginning: Beginning) -> None:
        """Replies from before are not known: some may be for requests that are live here. And some that follow are for
        requests that have ended."""
        self._beginning = beginning

    def observe(self, record: Record) -> Fault | None:
        """What is wrong with this record, if anything."""
        if self._closed and isinstance(record, Answered | AnswersClosed):
            return Fault("the gateway says something after its last word", getattr(record, "request", None))
        self._pairing.pair(record)
        match record:
            case Answered(request=request):
                if record.num_output < 0:
                    return Fault(f"{record.num_output} tokens left for its client", request)
                if request in self._answered:
                    return Fault("a second terminal reply", request)
                self._answered.add(request)
                before, self._number = self._number, record.number
                if record.number != before + 1 and (before or self._beginning is None):
                    return Fault(f"reply {record.number} of the gateway follows reply {before}", request)
            case AnswersClosed(count=count):
                self._closed = True
                if count != self._number and (self._number or self._beginning is None):
                    return Fault(f"the gateway counts {count} terminal replies, {self._number} are recorded", None)
        return None

    def finish(self) -> Iterator[Fault]:
        """What is missing when all is over; nothing, where the gateway's end is not recorded."""
        if not self._closed:
            return
        begun = self._beginning
        earlier = frozenset(each.request for each in begun.arrivals) if begun is not None else frozenset[int]()
        for request in self._pairing.unanswered():
            if request not in earlier:
                yield Fault("no terminal reply", request)
        for answer in self._pairing.unended():
            ended_before = begun is not None and answer.request <= begun.newest and answer.request not in earlier
            if answer.cause not in ABORT_CAUSES and not ended_before:
                yield Fault(f"its client was told {answer.cause}, and it has not ended", answer.request)
            elif answer.num_output and not ended_before:
                yield Fault(f"{answer.num_output} tokens left for its client, and it never ran", answer.request)
