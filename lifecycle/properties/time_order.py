"""Time enters a run only by its records, and never goes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.dispatch import KINDS, Kind
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Answered, AnswersClosed, Record, Submitted
from pawl.lifecycle.states import Event


def _has_a_time(kind: Kind) -> bool:
    return isinstance(kind, Event) or "time" in kind.__struct_fields__


class TimeOrder(Property):
    """The times of records do not fall; the gateway's, who is another actor, by themselves. The time of a request
    is not over before it comes, but where another replica may have had it."""

    name: ClassVar[str] = "time_order"

    def __init__(self) -> None:
        self._newest = self._newest_answer = float("-inf")

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        """One that goes on from a lost replica arrives without a time: its age is not recorded."""
        self._newest = max((arrival.time for arrival in beginning.arrivals), default=self._newest)
        return ()

    @on(Answered, AnswersClosed)
    def _of_the_gateway(self, record: Answered | AnswersClosed, history: History) -> Sequence[Violation]:
        before, self._newest_answer = self._newest_answer, record.time
        return () if record.time >= before else self._fault(history, record, before, record.time)

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        found, deadline = self._of_the_engine(record, history), record.deadline
        routed = history.started is None or "replica" in history.started.config
        if deadline is None or deadline >= record.time or routed:
            return found
        text = f"it came at {record.time}, and its time was over at {deadline}"
        return (*found, self.violation(history, text, record.request))

    @on(*(kind for kind in KINDS - {Answered, AnswersClosed, Submitted} if _has_a_time(kind)))
    def _of_the_engine(self, record: Any, history: History) -> Sequence[Violation]:
        time = record.time
        if time >= self._newest:
            self._newest = time
            return ()
        # Not a number is neither: it is reported as well.
        return self._fault(history, record, self._newest, time)

    def _fault(self, history: History, record: Record, before: float, time: float) -> Sequence[Violation]:
        text = f"time goes back from {before} to {time}"
        return (self.violation(history, text, getattr(record, "request", None)),)
