"""Time enters a run only by its records, and never goes back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from lifecycle.properties.base import Property, Violation
from lifecycle.properties.history import History
from lifecycle.records import Record


class TimeOrder(Property):
    """The times of records do not fall."""

    name: ClassVar[str] = "time_order"

    def __init__(self) -> None:
        self._newest = float("-inf")

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        time: float = getattr(record, "time", self._newest)
        if time >= self._newest:
            self._newest = time
            return ()
        # Not a number is neither: it is reported as well.
        explanation = f"time goes back from {self._newest} to {time}"
        return [self.violation(history, explanation, getattr(record, "request", None))]
