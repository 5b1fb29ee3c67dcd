"""Both ends of each request, of which either may stand first in a trace."""

from __future__ import annotations

from collections.abc import Sequence

from pawl.lifecycle.records import Answered, Transition


class Pairing:
    """The terminal edge of each request, and its terminal reply."""

    def __init__(self) -> None:
        self._ends: dict[int, Transition] = {}
        self._answers: dict[int, Answered] = {}

    def ended(self, record: Transition) -> tuple[Transition, Answered] | None:
        """The pair that this edge completes."""
        answer = self._answers.pop(record.request, None)
        if answer is not None:
            return record, answer
        self._ends[record.request] = record
        return None

    def answered(self, record: Answered) -> tuple[Transition, Answered] | None:
        """The pair that this reply completes."""
        end = self._ends.pop(record.request, None)
        if end is not None:
            return end, record
        self._answers[record.request] = record
        return None

    def unanswered(self) -> Sequence[Transition]:
        """Ends of requests that have no reply."""
        return tuple(self._ends.values())

    def unended(self) -> Sequence[Answered]:
        """Replies to requests without a terminal edge."""
        return tuple(self._answers.values())
