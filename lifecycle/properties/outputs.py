"""Properties of what requests get: `schedule_equivalence`, `retraction_transparency`, `cache_hit_equivalence`,
`batch_independence`, and `stop_semantics`.

The first four are one judgement about different requests. With an oracle (the ghost's tokens are known beforehand)
every output must be how the expected one begins. Without, where the backend promises that tokens depend on nothing but
the request, of two outputs of equal requests one must be how the other begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, TypeAlias

import numpy as np

from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.equals import Fate
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import Int32s, StepCommitted, Submitted, Transition, int32s
from pawl.lifecycle.request import MAX_STOP_TOKENS
from pawl.lifecycle.states import Cause, Event

Oracle: TypeAlias = Callable[[Sequence[int], int], Sequence[int]]
"""(prompt, count) -> the first `count` tokens that a greedy request gets."""

NO_TOKEN = -1


class Equivalence(Property):
    """The judgement that the four share. A subclass says which requests it is about."""

    def __init__(self, expected: Oracle | None = None) -> None:
        """`expected`: the oracle, where there is one."""
        self._expected = expected

    def concerns(self, fate: Fate) -> bool:
        """Whether this property is about a request that went through this."""
        raise NotImplementedError

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        submitted = history.submissions.get(record.row) if self._expected is not None else None
        if self._expected is not None and submitted is not None and _plain(submitted):
            return self._compare(record, submitted, self._expected, history)
        unequal = history.unequal
        if unequal is None or not (self.concerns(unequal.old.fate) or self.concerns(unequal.new.fate)):
            return ()
        theirs = f"request {unequal.old.request}, its equal, had {_short(unequal.old.tokens)}"
        return (self.violation(history, f"its output is {_short(unequal.new.tokens)}; {theirs}", record.request),)

    def _compare(
        self, record: Transition, submitted: Submitted, expected: Oracle, history: History
    ) -> Sequence[Violation]:
        if record.row in history.weights.older:
            return ()  # what it has got depends on when the weights were exchanged
        if submitted.request != record.request or not self.concerns(history.fate(record.row)):
            return ()
        tokens = history.output(record.row, record.num_output)
        wanted = expected(int32s(submitted.tokens).tolist(), len(tokens))
        if tokens.tolist() == list(wanted):
            return ()
        text = f"its output is {_short(tokens)}, and {_short(wanted)} is expected"
        return (self.violation(history, text, record.request),)


def _plain(submitted: Submitted) -> bool:
    """Whether the request gets the likeliest token each time, whatever that is."""
    sampling = submitted.sampling
    greedy = sampling.greedy or sampling.top_k == 1
    return greedy and not sampling.penalised and not sampling.logit_bias and not sampling.min_new_tokens


def _short(tokens: Sequence[int] | Int32s) -> str:
    return f"{list(map(int, tokens[:16]))}{' …' if len(tokens) > 16 else ''}"


class ScheduleEquivalence(Equivalence):
    """Same request, same tokens over chunk size, mixed batches, loop cell, page size, and admission order."""

    name: ClassVar[str] = "schedule_equivalence"

    def concerns(self, fate: Fate) -> bool:
        return True


class RetractionTransparency(Equivalence):
    """Tokens are equal with and without a retraction at any step."""

    name: ClassVar[str] = "retraction_transparency"

    def concerns(self, fate: Fate) -> bool:
        return fate.retracted


class CacheHitEquivalence(Equivalence):
    """A cold and a warm prefix give the same tokens."""

    name: ClassVar[str] = "cache_hit_equivalence"

    def concerns(self, fate: Fate) -> bool:
        return fate.warm


class BatchIndependence(Equivalence):
    """Greedy and seeded requests do not see their neighbours."""

    name: ClassVar[str] = "batch_independence"

    def concerns(self, fate: Fate) -> bool:
        return fate.batched


_BY_TOKEN = frozenset({Cause.EOS, Cause.STOP_TOKEN})
_BY_LAST_TOKEN = _BY_TOKEN | {Cause.LENGTH}
"""Causes of which the last token shows whether they are true."""


class StopSemantics(Property):
    """No tokens after the stop: nothing is drawn for a request that has drawn one of its stop tokens, and a request has
    ended with what it is said to have ended by."""

    name: ClassVar[str] = "stop_semantics"

    def __init__(self) -> None:
        self._stops: Int32s = np.full((64, MAX_STOP_TOKENS), NO_TOKEN, np.int32)
        """Stop tokens by row."""
        self._stoppable: set[int] = set()
        """Rows whose requests have stop tokens."""

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        if len(self._stops) < len(history.request):
            new = np.full((len(history.request) - len(self._stops), MAX_STOP_TOKENS), NO_TOKEN, np.int32)
            self._stops = np.concatenate((self._stops, new))
        row, stops = record.row, record.sampling.stop_token_ids[:MAX_STOP_TOKENS]
        if stops:
            self._stoppable.add(row)
            self._stops[row] = NO_TOKEN
            self._stops[row, : len(stops)] = stops
        elif row in self._stoppable:
            self._stoppable.remove(row)
            self._stops[row] = NO_TOKEN
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        return tuple(self._late(history)) if self._stoppable else ()

    def _late(self, history: History) -> Iterator[Violation]:
        committed, drew = history.committed, history.committed.drew & history.step.samples
        rows, counts = history.step.rows[drew], committed.counts[drew]
        for back in range(2, int(counts.max(initial=0)) + 2):
            reached = (counts >= back - 1) & (history.num_output[rows] >= back)
            drawn = rows[reached]
            before = history.outputs[drawn, history.num_output[drawn] - back]
            late = (self._stops[drawn] == before[:, None]).any(1)
            for index in np.flatnonzero(late).tolist():
                text = f"a token after stop token {before[index]}"
                yield self.violation(history, text, int(history.request[drawn[index]]))

    @on(Event.FINISH)
    def _finished(self, record: Transition, history: History) -> Sequence[Violation]:
        row, cause, count = record.row, record.cause, int(history.num_output[record.row])
        last = int(history.outputs[row, count - 1])
        stopped = count > 0 and last in self._stops[row].tolist()
        if stopped == (cause in _BY_TOKEN) or cause not in _BY_LAST_TOKEN:
            return ()
        fault = f"{last} is a stop token" if stopped else "is none"
        return (self.violation(history, f"it ended by {cause}, and its last token {fault}", record.request),)
