"""What left for the clients: exactly one terminal reply for each request, which `legal_lifecycle` demands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.pairing import Pairing
from pawl.lifecycle.records import Answered, AnswersClosed, Started, Submitted
from pawl.lifecycle.states import ABORT_CAUSES, Event

_AFTER_THE_LAST = "the gateway says something after its last word"


class Fault(NamedTuple):
    """What is wrong, and with which request."""

    explanation: str
    request: int | None


class Replies:
    """Exactly one terminal reply for each request: what `legal_lifecycle` says of what left for the clients."""

    def __init__(self) -> None:
        self._answered: set[int] = set()
        self._resumed: set[int] = set()
        """Not answered; others had them, until they were lost."""
        self._number = 0
        """Of the newest reply."""
        self._beginning: Beginning | None = None
        self._closed = False

    def begin(self, beginning: Beginning) -> None:
        """Replies from before are not known: some may be for requests that are live here. And some that follow are for
        requests that have ended."""
        self._beginning = beginning

    def submitted(self, record: Submitted) -> None:
        """A request that a lost replica had may have been answered meanwhile; then that one's trace has the reply."""
        if record.num_retractions:
            self._resumed.add(record.request)

    def answered(self, record: Answered) -> Fault | None:
        """What is wrong with this reply, if anything."""
        request = record.request
        if self._closed:
            return Fault(_AFTER_THE_LAST, request)
        if record.num_output < 0:
            return Fault(f"{record.num_output} tokens left for its client", request)
        if request in self._answered:
            return Fault("a second terminal reply", request)
        self._answered.add(request)
        self._resumed.discard(request)
        before, self._number = self._number, record.number
        if record.number != before + 1 and (before or self._beginning is None):
            return Fault(f"reply {record.number} of the gateway follows reply {before}", request)
        return None

    def closed(self, record: AnswersClosed) -> Fault | None:
        """What is wrong with the last word, if anything."""
        if self._closed:
            return Fault(_AFTER_THE_LAST, None)
        self._closed = True
        if record.count == self._number or not (self._number or self._beginning is None):
            return None
        return Fault(f"the gateway counts {record.count} terminal replies, {self._number} are recorded", None)

    def finish(self, pairing: Pairing, started: Started | None) -> Iterator[Fault]:
        """What is missing when all is over; nothing, where the gateway's end is not recorded. A request that comes to a
        replica from one that was lost may find it stopping, and not come in; its client has had tokens."""
        if not self._closed:
            return
        begun, routed = self._beginning, started is not None and "replica" in started.config
        earlier = frozenset(each.request for each in begun.arrivals) if begun is not None else frozenset[int]()
        for end in pairing.unanswered():
            if end.event == Event.FINISH and end.request in self._resumed:
                continue
            # A gateway that lost an actor answers at once: perhaps before the checkpoint, and the request came later.
            if end.request not in earlier and (begun is None or end.event == Event.FINISH):
                yield Fault("no terminal reply", end.request)
        for answer in pairing.unended():
            ended_before = begun is not None and begun.newest.has_been(answer.request) and answer.request not in earlier
            if answer.cause not in ABORT_CAUSES and not ended_before:
                yield Fault(f"its client was told {answer.cause}, and it has not ended", answer.request)
            elif answer.num_output and not ended_before and not routed:
                yield Fault(f"{answer.num_output} tokens left for its client, and it never ran", answer.request)
