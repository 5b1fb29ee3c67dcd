"""Property `drafts_in_bounds`: which steps have drafts, and how long these are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Started, StepPlanned


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
    allows such a step, nor than `prefill_chunk`, and no other is planned until it is resolved."""

    name: ClassVar[str] = "drafts_in_bounds"

    def __init__(self) -> None:
        self._settings: _Settings | None = None

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

    def _judged(self, history: History) -> Iterator[Violation]:
        step = history.step
        for other in history.in_flight.values():
            if other is not step and (other.chained & (other.lengths > 1)).any():
                text = f"step {step.step} is planned before it is known what came of the drafts of step {other.step}"
                yield self.violation(history, text)
                return
        lengths = step.lengths
        runs = step.chained & (lengths > 1)
        if self._settings is None or not np.count_nonzero(runs):
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
