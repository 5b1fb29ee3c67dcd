"""Property `logprobs_as_asked`: which log-probabilities a step gives to clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise, zip_longest
from math import exp
from typing import ClassVar, TypeAlias

from pawl.lifecycle.columns import Scores, float32s
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import StepCommitted, Submitted, Transition, int32s
from pawl.lifecycle.request import SamplingParameters

_Place: TypeAlias = tuple[int, int, int, tuple[int, ...]]
"""Row, position, how many of the likeliest tokens stand there as well, and the named tokens after them."""
_Scored: TypeAlias = tuple[int, float]
"""A token and its log-probability."""
_ROUNDED = 1e-3
"""What adding up in float32 may be off by."""


class LogprobsAsAsked(Property):
    """A step records the log-probabilities that requests asked for and no others: of each token that it gives out, and
    of each token of a prompt that it computes for a request without output; with as many of the likeliest tokens as the
    request asked for, and those that it named. In each place they are of one distribution: none is above zero, together
    they are no more than one, the likeliest stand in falling order, each once, and one token has one number."""

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
        if scores is not None:
            yield from self._impossible(scores, history)

    def _impossible(self, scores: Scores, history: History) -> Iterator[Violation]:
        """The first place whose numbers are of no distribution. Of places that were asked for."""
        rows, positions, counts = (int32s(each).tolist() for each in (scores.rows, scores.positions, scores.num_top))
        own, tokens, top = float32s(scores.chosen).tolist(), int32s(scores.top_tokens).tolist(), float32s(scores.top)
        first = 0
        for row, position, chosen, count in zip(rows, positions, own, counts, strict=True):
            others = list(zip(tokens[first : first + count], top[first : first + count].tolist(), strict=True))
            first += count
            num_likeliest = count - len(self._asking[row].token_ids_logprob)
            what = _no_distribution((_token_at(history, row, position), chosen), others, max(num_likeliest, 0))
            if what:
                text = f"of the token at position {position} {what}"
                yield self.violation(history, text, int(history.request[row]))
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


def _token_at(history: History, row: int, position: int) -> int:
    num_prompt = int(history.num_prompt[row])
    if position < num_prompt:
        return int(int32s(history.submissions[row].tokens)[position])
    return int(history.outputs[row, position - num_prompt])


def _no_distribution(own: _Scored, others: Sequence[_Scored], num_likeliest: int) -> str:
    """Why these are not of one; empty where they may be."""
    numbers: dict[int, float] = {}
    for token, number in (own, *others):
        if not number <= _ROUNDED:  # not a number is neither
            return f"the log-probability of token {token} is {number}"
        if numbers.setdefault(token, number) != number:
            return f"token {token} has the log-probabilities {numbers[token]} and {number}"
    likeliest = others[:num_likeliest]
    if len({token for token, _ in likeliest}) < len(likeliest):
        return "one of the likeliest in its place stands there twice"
    if any(one < other for (_, one), (_, other) in pairwise(likeliest)):
        return "the likeliest in its place do not stand in falling order"
    if likeliest and max(numbers.values()) > likeliest[0][1]:
        return f"the likeliest in its place has {likeliest[0][1]}, and another one {max(numbers.values())}"
    total = sum(map(exp, numbers.values()))
    return "" if total <= 1 + _ROUNDED else f"the probabilities in its place are {total:g} together"


def _words(place: _Place | None) -> str:
    if place is None:
        return "no log-probability"
    row, position, count, named = place
    others = f"{count} likeliest tokens" + (f" and those named {', '.join(map(str, named))}" if named else "")
    return f"a log-probability of the token at position {position} of row {row}, with {others}"
