"""Property `drafts_in_bounds`: which steps have drafts, and how long these are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Started, StepCommitted, StepPlanned, Transition

SHORTEST_PAUSE = 4
"""Tokens that a request draws one by one at the least after a draft of which nothing was right."""


class _Drafts(msgspec.Struct):
    num_speculative_tokens: int
    max_positions: int


class _Settings(msgspec.Struct):
    """The settings of the loop that matter here."""

    prefill_chunk: int
    speculation: _Drafts | None = None


class DraftsInBounds(Property):
    """A request has a draft only where the loop may make some, of as many tokens at the most as one may have, and none
    for positions that are never computed. A step with drafts computes no prompt and no more positions than the loop
    allows such a step, nor than `prefill_chunk`, and no other is planned until it is resolved. A request of whose draft
    nothing was right has none for a while."""

    name: ClassVar[str] = "drafts_in_bounds"

    def __init__(self) -> None:
        self._settings: _Settings | None = None
        self._pausing: dict[int, int] = {}
        """Request of whose last draft nothing was right -> tokens that it must have before another."""

    @on(Started)
    def _started(self, record: Started, history: History) -> Sequence[Violation]:
        loop: Any = record.config.get("loop")
        try:
            self._settings = msgspec.convert(loop, _Settings)
        except msgspec.ValidationError:
            self._settings = None
        return ()

    @on(StepPlanned)
    def _planned(self, record: StepPlanned, history: History) -> Sequence[Violation]:
        return tuple(self._judged(history))

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        if record.counts is not None:
            step, committed = history.step, history.committed
            for index in np.flatnonzero(step.chained & (step.lengths > 1) & committed.live).tolist():
                request = int(step.requests[index])
                if committed.counts[index] > 1:
                    self._pausing.pop(request, None)
                else:
                    self._pausing[request] = history.known(int(step.rows[index])) + SHORTEST_PAUSE
        return ()

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        self._pausing.pop(record.request, None)
        return ()

    def _judged(self, history: History) -> Iterator[Violation]:
        step = history.step
        for other in history.in_flight.values():
            if other is not step and 1 in (other.chained & (other.lengths > 1)).tobytes():
                text = f"step {step.step} is planned before it is known what came of the drafts of step {other.step}"
                yield self.violation(history, text)
                return
        lengths = step.lengths
        runs = step.chained & (lengths > 1)
        if self._settings is None or 1 not in runs.tobytes():
            return
        drafts, chunk = self._settings.speculation, self._settings.prefill_chunk
        chunk = min(chunk, drafts.max_positions) if drafts is not None else chunk
        request = int(step.requests[int(np.where(runs, lengths, 0).argmax())])
        longest = int(lengths[runs].max()) - 1
        most = drafts.num_speculative_tokens if drafts is not None else 0
        last = history.num_prompt[step.rows] + history.num_wanted[step.rows] - 1
        if longest > most:
            yield self.violation(history, f"a draft of {longest} tokens, where {most} are allowed", request)
        elif not step.chained.all() or lengths.sum() > chunk:
            text = f"step {step.step} has drafts and computes {lengths.sum()} positions, prompts or more than {chunk}"
            yield self.violation(history, text, request)
        elif (step.ends > last)[runs].any():
            yield self.violation(history, "a draft for positions that are never computed", request)
        known = [history.known(row) for row in step.rows[runs].tolist()]
        for number, count in zip(step.requests[runs].tolist(), known, strict=True):
            if count < self._pausing.get(number, 0):
                text = f"it has a draft at {count} tokens, and was to have none before {self._pausing[number]}"
                yield self.violation(history, text, number)
