"""Properties of what requests get: `schedule_equivalence`, `retraction_transparency`, `cache_hit_equivalence`,
`batch_independence`, and `stop_semantics`.

The first four are one judgement about different requests. With an oracle (the ghost's tokens are known beforehand)
every output must be how the expected one begins. Without, where the backend promises that tokens depend on nothing but
the request, of two outputs of equal requests one must be how the other begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, NamedTuple, TypeAlias

import msgspec
import numpy as np

from pawl.lifecycle.properties.base import ENDS, Property, Violation
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.growing import fitted
from pawl.lifecycle.properties.history import Bools, History
from pawl.lifecycle.recompute import is_reproducible
from pawl.lifecycle.records import (
    Int32s,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    Submitted,
    Transition,
    int32s,
)
from pawl.lifecycle.request import MAX_STOP_TOKENS, SamplingParameters
from pawl.lifecycle.states import Cause, Event

Oracle: TypeAlias = Callable[[Sequence[int], int], Sequence[int]]
"""(prompt, count) -> the first `count` tokens that a greedy request gets."""

NO_TOKEN = -1

Key: TypeAlias = bytes
"""Digest of all that decides what a request gets: its namespace, its prompt, and how its tokens are drawn."""


class Seen(NamedTuple):
    """The longest output so far of requests that are equal in all that matters."""

    request: int
    tokens: Int32s
    concerned: bool


class Equivalence(Property):
    """The judgement that the four share. A subclass says which requests it is about."""

    def __init__(self, expected: Oracle | None = None) -> None:
        """`expected`: the oracle, where there is one."""
        self._expected = expected
        self._comparing = False
        self._seen: dict[Key, Seen] = {}
        self._concerned: Bools = np.zeros(64, np.bool_)
        """By row: the request is one of those that this property is about."""

    def note(self, record: Record, history: History, concerned: Bools) -> None:
        """Mark rows of requests that this property is about."""
        raise NotImplementedError

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Submitted():
                self._concerned = fitted(self._concerned, record.row + 1)
                self._concerned[record.row] = False
            case Started():
                self._comparing = is_reproducible(record)
            case Transition(event=Event.FINISH | Event.ABORT):
                return tuple(self._ended(record, history))
        self.note(record, history, self._concerned)
        return ()

    def _ended(self, record: Transition, history: History) -> Iterator[Violation]:
        row = record.row
        submitted = history.submissions.get(row)
        if submitted is None or submitted.request != record.request or not history.num_output[row]:
            return
        concerned = bool(self._concerned[row])
        if self._expected is not None and _plain(submitted):
            tokens, prompt = history.output(row, record.num_output), int32s(submitted.tokens).tolist()
            wanted = self._expected(prompt, len(tokens)) if concerned else None
            if wanted is not None and tokens.tolist() != list(wanted):
                text = f"its output is {_short(tokens)}, and {_short(wanted)} is expected"
                yield self.violation(history, text, record.request)
        elif self._comparing:
            key, tokens = _output(record, submitted, history)
            yield from self._compare(key, Seen(record.request, tokens, concerned), history)

    def _compare(self, key: Key, new: Seen, history: History) -> Iterator[Violation]:
        old = self._seen.get(key)
        if old is None:
            self._seen[key] = new
            return
        common = min(len(old.tokens), len(new.tokens))
        if (old.concerned or new.concerned) and (old.tokens[:common] != new.tokens[:common]).any():
            text = f"its output is {_short(new.tokens)}; request {old.request}, its equal, had {_short(old.tokens)}"
            yield self.violation(history, text, new.request)
        elif len(new.tokens) > len(old.tokens):
            self._seen[key] = new


def _output(record: Transition, submitted: Submitted, history: History) -> tuple[Key, Int32s]:
    """What the request that ends here was, and its output. Worked out once for all four properties."""
    found: tuple[Key, Int32s] | None = history.derived.get("output")
    if found is None:
        digest = hashlib.sha256(_law_of_draws(submitted))
        digest.update(np.asarray(int32s(submitted.tokens)).tobytes())
        found = history.derived["output"] = digest.digest(), history.output(record.row, record.num_output)
    return found


def _plain(submitted: Submitted) -> bool:
    """Whether the request gets the likeliest token each time, whatever that is."""
    sampling = submitted.sampling
    greedy = sampling.greedy or sampling.top_k == 1
    return greedy and not sampling.penalised and not sampling.logit_bias and not sampling.min_new_tokens


_PLACES = {name: place for place, name in enumerate(SamplingParameters.__struct_fields__)}
_DRAWS_NOTHING = ("max_new_tokens", "eos_token_ids", "top_logprobs", "token_ids_logprob", "prompt_logprobs")


def _law_of_draws(submitted: Submitted) -> bytes:
    """All but the prompt that decides how its tokens are drawn, as bytes; not how many they are."""
    sampling = submitted.sampling
    values = list(msgspec.structs.astuple(sampling))
    for name in _DRAWS_NOTHING:
        values[_PLACES[name]] = None
    if not sampling.min_new_tokens:
        values[_PLACES["stop_token_ids"]] = None
    if sampling.greedy:
        values[_PLACES["seed"]] = None
    return msgspec.msgpack.encode((submitted.namespace, values))


def _short(tokens: Sequence[int] | Int32s) -> str:
    return f"{list(map(int, tokens[:16]))}{' …' if len(tokens) > 16 else ''}"


class ScheduleEquivalence(Equivalence):
    """Same request, same tokens over chunk size, mixed batches, loop cell, page size, and admission order."""

    name: ClassVar[str] = "schedule_equivalence"
    observes = (Started, Submitted, *ENDS)

    def note(self, record: Record, history: History, concerned: Bools) -> None:
        if isinstance(record, Submitted):
            concerned[record.row] = True


class RetractionTransparency(Equivalence):
    """Tokens are equal with and without a retraction at any step."""

    name: ClassVar[str] = "retraction_transparency"
    observes = (Started, Submitted, Event.RETRACT, *ENDS)

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._concerned[[row for row in beginning.rows if beginning.table.info(row).num_retractions]] = True
        return found

    def note(self, record: Record, history: History, concerned: Bools) -> None:
        if isinstance(record, Transition) and record.event == Event.RETRACT:
            concerned[record.row] = True


class CacheHitEquivalence(Equivalence):
    """A cold and a warm prefix give the same tokens."""

    name: ClassVar[str] = "cache_hit_equivalence"
    observes = (Started, Submitted, Event.ADMIT, *ENDS)

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        found = super().begin(beginning, history)
        self._concerned[[row for row in beginning.rows if beginning.table.info(row).num_cached]] = True
        return found

    def note(self, record: Record, history: History, concerned: Bools) -> None:
        if isinstance(record, Transition) and record.event == Event.ADMIT and record.num_cached:
            concerned[record.row] = True


class BatchIndependence(Equivalence):
    """Greedy and seeded requests do not see their neighbours."""

    name: ClassVar[str] = "batch_independence"
    observes = (Started, Submitted, StepPlanned, *ENDS)

    def note(self, record: Record, history: History, concerned: Bools) -> None:
        if isinstance(record, StepPlanned) and len(history.step.rows) > 1:
            concerned[history.step.rows] = True


class StopSemantics(Property):
    """No tokens after the stop: nothing is drawn for a request that has drawn one of its stop tokens, and a request has
    ended with what it is said to have ended by."""

    name: ClassVar[str] = "stop_semantics"
    observes = (Submitted, StepCommitted, Event.FINISH)

    def __init__(self) -> None:
        self._stops: Int32s = np.full((64, MAX_STOP_TOKENS), NO_TOKEN, np.int32)
        """Stop tokens by row."""
        self._stoppable: set[int] = set()
        """Rows whose requests have stop tokens."""

    def observe(self, record: Record, history: History) -> Sequence[Violation]:
        match record:
            case Submitted():
                self._submitted(record, history)
            case StepCommitted() if self._stoppable:
                return tuple(self._committed(history))
            case Transition(event=Event.FINISH):
                return tuple(self._finished(record, history))
        return ()

    def _submitted(self, record: Submitted, history: History) -> None:
        if len(self._stops) < len(history.request):
            new = np.full((len(history.request) - len(self._stops), MAX_STOP_TOKENS), NO_TOKEN, np.int32)
            self._stops = np.concatenate((self._stops, new))
        stops = record.sampling.stop_token_ids[:MAX_STOP_TOKENS]
        self._stops[record.row] = NO_TOKEN
        self._stops[record.row, : len(stops)] = stops
        if stops:
            self._stoppable.add(record.row)
        else:
            self._stoppable.discard(record.row)

    def _committed(self, history: History) -> Iterator[Violation]:
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

    def _finished(self, record: Transition, history: History) -> Iterator[Violation]:
        stops, output = self._stops[record.row].tolist(), history.output(record.row)
        ended_by = record.cause in (Cause.EOS, Cause.STOP_TOKEN)
        stopped = len(output) > 0 and int(output[-1]) in stops
        if ended_by and not stopped:
            yield self.violation(history, f"it ended by {record.cause}, and its last token is none", record.request)
        if record.cause == Cause.LENGTH and stopped:
            text = f"it ended by {record.cause}, and its last token {output[-1]} is a stop token"
            yield self.violation(history, text, record.request)
