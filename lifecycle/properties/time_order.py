"""Time enters a run only by its records, and never goes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Answered, AnswersClosed, Record


class TimeOrder(Property):
    """The times of records do not fall; the gateway's, who is another actor, by themselves."""

    name: ClassVar[str] = "time_order"

    def __init__(self) -> None:
        self._newest = self._newest_answer = float("-inf")

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        if isinstance(record, Answered | AnswersClosed):
            before, self._newest_answer = self._newest_answer, record.time
            return () if record.time >= before else [self._fault(history, record, before, record.time)]
        time: float = getattr(record, "time", self._newest)
        if time >= self._newest:
            self._newest = time
            return ()
        # Not a number is neither: it is reported as well.
        return [self._fault(history, record, self._newest, time)]

    def _fault(self, history: History, record: Record, before: float, time: float) -> Violation:
        return self.violation(history, f"time goes back from {before} to {time}", getattr(record, "request", None))
