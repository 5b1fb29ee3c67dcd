"""Property `logprobs_as_asked`: which log-probabilities a step gives to clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, zip_longest
from typing import ClassVar, TypeAlias

from pawl.lifecycle.columns import Scores, float32s
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import StepCommitted, Submitted, Transition, int32s
from pawl.lifecycle.request import SamplingParameters

_Place: TypeAlias = tuple[int, int, int, tuple[int, ...]]
"""Row, position, how many of the likeliest tokens stand there as well, and the named tokens after them."""


class LogprobsAsAsked(Property):
    """A step records the log-probabilities that requests asked for and no others: of each token that it gives out, and
    of each token of a prompt that it computes for a request without output; with as many of the likeliest tokens as the
    request asked for, and those that it named."""

    name: ClassVar[str] = "logprobs_as_asked"

    def __init__(self) -> None:
        self._asking: dict[int, SamplingParameters] = {}
        """What live requests want that want some, by row."""

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        sampling = record.sampling
        if sampling.top_logprobs is not None or sampling.prompt_logprobs:
            self._asking[record.row] = sampling
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        if record.scores is None and not self._asking:
            return ()
        return tuple(self._differing(record.scores, history))

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        self._asking.pop(record.row, None)
        return ()

    def _differing(self, scores: Scores | None, history: History) -> Iterator[Violation]:
        asked = [*self._drawn(history), *self._of_prompts(history)]
        for recorded, belongs in zip_longest(_places(scores, self._asking), asked):
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
                yield from (_place(row, position, sampling) for position in range(known - count, known))

    def _of_prompts(self, history: History) -> Iterator[_Place]:
        step, committed = history.step, history.committed
        for index, row in enumerate(step.rows.tolist()):
            sampling = self._asking.get(row)
            if sampling is None or not sampling.prompt_logprobs or not committed.live[index]:
                continue
            if history.num_output[row] == committed.counts[index]:  # it had none
                positions = range(max(int(step.starts[index]), 1), int(step.ends[index]))
                yield from (_place(row, position, sampling) for position in positions)


def _place(row: int, position: int, sampling: SamplingParameters) -> _Place:
    return row, position, sampling.top_logprobs or 0, sampling.token_ids_logprob


def _places(scores: Scores | None, asking: Mapping[int, SamplingParameters]) -> list[_Place]:
    """Raises ValueError where columns do not fit each other."""
    if scores is None:
        return []
    num_top, tokens = int32s(scores.num_top).tolist(), int32s(scores.top_tokens).tolist()
    lengths = len(float32s(scores.chosen)), len(tokens), len(float32s(scores.top))
    if lengths != (len(num_top), sum(num_top), sum(num_top)):
        raise ValueError("columns of log-probabilities differ in length")
    places: list[_Place] = []
    ends = accumulate(num_top)
    for row, position, count, end in zip(int32s(scores.rows), int32s(scores.positions), num_top, ends, strict=True):
        wanted = asking.get(int(row))
        named = min(len(wanted.token_ids_logprob), count) if wanted is not None else 0
        places.append((int(row), int(position), count - named, tuple(tokens[end - named : end])))
    return places


def _words(place: _Place | None) -> str:
    if place is None:
        return "no log-probability"
    row, position, count, named = place
    others = f"{count} likeliest tokens" + (f" and those named {', '.join(map(str, named))}" if named else "")
    return f"a log-probability of the token at position {position} of row {row}, with {others}"
