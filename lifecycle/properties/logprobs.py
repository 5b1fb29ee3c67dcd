"""Property `logprobs_as_asked`: which log-probabilities a step gives to clients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import ClassVar, TypeAlias

from pawl.lifecycle.columns import Scores, float32s
from pawl.lifecycle.properties.base import ENDS, Property, Violation
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Record, StepCommitted, Submitted, Transition, int32s
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Event

_Place: TypeAlias = tuple[int, int, int]
"""Row, position, and how many of the likeliest tokens stand there as well."""


class LogprobsAsAsked(Property):
    """A step records the log-probabilities that requests asked for and no others: of each token that it gives out, and
    of each token of a prompt that it computes for a request without output; with as many of the likeliest tokens as the
    request asked for."""

    name: ClassVar[str] = "logprobs_as_asked"
    observes = (Submitted, StepCommitted, *ENDS)

    def __init__(self) -> None:
        self._asking: dict[int, SamplingParameters] = {}
        """What live requests want that want some, by row."""

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Submitted(row=row, sampling=sampling):
                if sampling.top_logprobs is not None or sampling.prompt_logprobs:
                    self._asking[row] = sampling
            case StepCommitted(scores=scores):
                if scores is not None or self._asking:
                    return tuple(self._differing(scores, history))
            case Transition(event=Event.FINISH | Event.ABORT):
                self._asking.pop(record.row, None)
        return ()

    def _differing(self, scores: Scores | None, history: History) -> Iterator[Violation]:
        asked = [*self._drawn(history), *self._of_prompts(history)]
        for recorded, belongs in zip_longest(_places(scores), asked):
            if recorded != belongs:
                row = (recorded or belongs)[0]
                request = int(history.request[row]) if 0 <= row < history.num_rows else None
                text = f"step {history.step.step} records {_words(recorded)}, where {_words(belongs)} belongs"
                yield self.violation(history, text, request)
                return

    def _drawn(self, history: History) -> Iterator[_Place]:
        committed = history.committed
        for row, drew, count in zip(history.step.rows.tolist(), committed.drew, committed.counts.tolist(), strict=True):
            sampling = self._asking.get(row)
            if drew and sampling is not None and sampling.top_logprobs is not None:
                known = int(history.num_prompt[row] + history.num_output[row])
                yield from ((row, position, sampling.top_logprobs) for position in range(known - count, known))

    def _of_prompts(self, history: History) -> Iterator[_Place]:
        step, committed = history.step, history.committed
        for index, row in enumerate(step.rows.tolist()):
            sampling = self._asking.get(row)
            if sampling is None or not sampling.prompt_logprobs or not committed.live[index]:
                continue
            if history.num_output[row] == committed.counts[index]:  # it had none
                positions = range(max(int(step.starts[index]), 1), int(step.ends[index]))
                yield from ((row, position, sampling.top_logprobs or 0) for position in positions)


def _places(scores: Scores | None) -> list[_Place]:
    """Raises ValueError where columns do not fit each other."""
    if scores is None:
        return []
    num_top = int32s(scores.num_top).tolist()
    lengths = len(float32s(scores.chosen)), len(int32s(scores.top_tokens)), len(float32s(scores.top))
    if lengths != (len(num_top), sum(num_top), sum(num_top)):
        raise ValueError("columns of log-probabilities differ in length")
    return list(zip(int32s(scores.rows).tolist(), int32s(scores.positions).tolist(), num_top, strict=True))


def _words(place: _Place | None) -> str:
    if place is None:
        return "no log-probability"
    return f"a log-probability of the token at position {place[1]} of row {place[0]}, with {place[2]} likeliest tokens"
