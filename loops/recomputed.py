"""The property that a model decides: the words of a recorded run are those that its requests get."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import ClassVar, NamedTuple

import msgspec
import numpy as np

from pawl.lifecycle.columns import Float32s, Scores, digests_of, float32s, int32s, uint8s
from pawl.lifecycle.machines.weights import WeightEvent
from pawl.lifecycle.namespaces import adapter_of
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.served_weights import fingerprint_at_start
from pawl.lifecycle.recompute import Compute, Computed, Content, Recorded
from pawl.lifecycle.records import (
    AdapterMoved,
    Delivered,
    Int32s,
    StepCommitted,
    Submitted,
    Transition,
    WeightsMoved,
    num_tokens,
)
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo

LOADS = frozenset({"load_adapter", "load_numbered_adapter"})
"""Orders that say where an adapter is to be read."""
AT_ONCE = 8192
"""Tokens that wait to be computed together."""


class Tally(msgspec.Struct):
    """How much was computed again."""

    requests: int = 0
    tokens: int = 0
    """Of outputs."""
    scores: int = 0
    """Log-probabilities of tokens."""
    vectors: int = 0
    not_recomputed: int = 0
    """Requests with output of a run that did not promise that they can be."""
    of_other_weights: int = 0
    """Output tokens that other weights have drawn than those that the engine started with, or with an adapter that
    cannot be read any more."""

    def __str__(self) -> str:
        if self.not_recomputed:
            return f"nothing; {self.not_recomputed} requests of a run that does not promise the same bits"
        said = f"{self.requests} requests, {self.tokens} output tokens, {self.scores} log-probabilities"
        said += f", {self.vectors} vectors" if self.vectors else ""
        return (
            f"{said}; not {self.of_other_weights} output tokens of other weights, or of adapters that are not there"
            if self.of_other_weights
            else said
        )


class _Scored(NamedTuple):
    """Log-probabilities of one request in one record."""

    record: int
    positions: Int32s
    chosen: Float32s
    num_top: Int32s
    top_tokens: Int32s
    top: Float32s


class _Life:
    """One request as far as it is recorded."""

    def __init__(self, request: int, sampling: SamplingParameters, tokens: Int32s, num_prompt: int) -> None:
        self.request = request
        self.sampling = sampling
        self.known = tokens
        """The prompt, and output that came before the trace begins."""
        self.num_prompt = num_prompt
        self.output: list[int] = []
        self.records: list[int] = []
        """Which recorded each of `output`."""
        self.scored: list[_Scored] = []
        self.embedded: tuple[int, bytes] | None = None
        """Which record has its vector, and the digest."""
        self.outdated = False
        """What it gets from now on is drawn by other weights than those at hand, or with an adapter of which nothing is
        known."""
        self.adapter: Content | None = None

    def recorded(self) -> Recorded:
        tokens = np.concatenate((self.known, np.array(self.output, np.int32)))
        return Recorded(tokens, self.num_prompt, self.sampling, self.adapter)

    def __len__(self) -> int:
        return len(self.known) + len(self.output)

    @property
    def empty(self) -> bool:
        """There is nothing to compute: no output, no log-probability, no vector."""
        return not self.scored and self.embedded is None and len(self) == self.num_prompt


class Recomputed(Property):
    """With the model at hand, the words of a run are computed again from what its requests asked for: every token, and
    every log-probability, and every vector's digest, is the same to the bit. What other weights have drawn than
    those that the engine started with is counted, and not computed; so is what an adapter has drawn with them whose
    content is not where it was read."""

    name: ClassVar[str] = "recomputed"

    def __init__(self, compute: Compute | None) -> None:
        """`compute`: the model of the run; None where the run has not promised that it can be computed again, which
        leaves requests to be counted."""
        self._compute = compute
        self._lives: dict[int, _Life] = {}
        """Live requests by row."""
        self._waiting: list[_Life] = []
        self._num_waiting = 0
        self._sources: dict[str, dict[str, None]] = {}
        """Where adapters of a name were to be read; a set that keeps its order."""
        self._contents: dict[int, Content] = {}
        """Of adapters that were read, by number."""
        self.tally = Tally()

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        for kept in beginning.adapters:
            self._sources.setdefault(kept.name, {})[kept.source] = None
            self._read(kept.number, kept.name, kept.fingerprint)
        table = beginning.table
        for row in beginning.rows:
            known = table.tokens[row, : table.num_tokens[row]]
            self._begin(row, table.info(row), known, int(table.num_prompt[row]), history)
        return ()

    def _begin(self, row: int, info: RequestInfo | Submitted, known: Int32s, num_prompt: int, history: History) -> None:
        """A request with these known tokens. Output that other weights have drawn is not computed."""
        outdated = info.num_older > 0 or not self._at_hand(info.namespace, history)
        if outdated:
            known = known[:num_prompt]
        life = self._lives[row] = _Life(info.request, info.sampling, known, num_prompt)
        life.outdated = outdated
        life.adapter = self._contents.get(adapter_of(info.namespace))

    def _at_hand(self, namespace: str, history: History) -> bool:
        """Whether a request is computed by the weights with which the engine started, and its adapter is known."""
        number = adapter_of(namespace)
        at_start = fingerprint_at_start(history.started) or ""
        return history.weights.fingerprint == at_start and (not number or number in self._contents)

    def _read(self, number: int, name: str, fingerprint: str) -> None:
        """An adapter has this content, if any yet."""
        if fingerprint:
            self._contents[number] = Content(fingerprint, tuple(self._sources.get(name, ())))

    def finish(self, history: History) -> Sequence[Violation]:
        """What has ended, and what is live where the trace ends."""
        for row in list(self._lives):
            self._wait(self._lives.pop(row))
        return self._compare_waiting()

    broken_off = finish

    # ---- what is recorded ----

    @on(Delivered)
    def _delivered(self, record: Delivered, history: History) -> Sequence[Violation]:
        if record.kind in LOADS:
            name, path = (str(record.fields.get(field)) for field in ("lora_name", "lora_path"))
            self._sources.setdefault(name, {})[path] = None
        return ()

    @on(AdapterMoved)
    def _adapter_moved(self, record: AdapterMoved, history: History) -> Sequence[Violation]:
        self._read(record.number, record.name, record.fingerprint)
        return ()

    @on(Submitted)
    def _submitted(self, record: Submitted, history: History) -> Sequence[Violation]:
        prompt = int32s(record.tokens)
        known = np.concatenate((prompt, int32s(record.output)))
        self._begin(record.row, record, known, len(prompt), history)
        return ()

    @on(StepCommitted)
    def _committed(self, record: StepCommitted, history: History) -> Sequence[Violation]:
        number, samples = history.number, history.step.samples
        rows, tokens = history.step.rows[samples].tolist(), int32s(record.tokens).tolist()
        drew = num_tokens(uint8s(record.events), record.counts)[samples].tolist()
        counts = [1] * len(rows) if record.counts is None else int32s(record.counts)[samples].tolist()
        at = 0
        for row, count, given in zip(rows, counts, drew, strict=True):
            life = self._lives.get(row) if given else None
            if life is not None and life.outdated:
                self.tally.of_other_weights += count
            elif life is not None:
                life.output += tokens[at : at + count]
                life.records += [number] * count
            at += count
        if record.scores is not None:
            self._scored(record.scores, number)
        if record.embedded is not None:
            for row, digest in zip(int32s(record.embedded.rows).tolist(), digests_of(record.embedded), strict=True):
                if row in self._lives and not self._lives[row].outdated:
                    self._lives[row].embedded = number, digest
        return ()

    def _scored(self, scores: Scores, number: int) -> None:
        rows, positions, num_top = int32s(scores.rows), int32s(scores.positions), int32s(scores.num_top)
        chosen, top_tokens, top = float32s(scores.chosen), int32s(scores.top_tokens), float32s(scores.top)
        ends = np.cumsum(num_top)
        firsts = np.flatnonzero(np.diff(rows, prepend=-1)).tolist()
        for first, last in zip(firsts, [*firsts[1:], len(rows)], strict=True):
            life = self._lives.get(int(rows[first]))
            if life is not None and not life.outdated:
                here, tops = slice(first, last), slice(ends[first] - num_top[first], ends[last - 1])
                each = positions[here], chosen[here], num_top[here], top_tokens[tops], top[tops]
                life.scored.append(_Scored(number, *each))

    @on(WeightsMoved)
    def _moved(self, record: WeightsMoved, history: History) -> Sequence[Violation]:
        """Who has output goes on from it under other weights; whose prompt alone was computed, begins again."""
        if record.event is WeightEvent.SWAPPED:
            for row, life in self._lives.items():
                if not history.num_output[row]:
                    life.scored.clear()
                    life.outdated = not self._at_hand(history.submissions[row].namespace, history)
                else:
                    life.outdated = True
        return ()

    @on(*ENDS)
    def _ended(self, record: Transition, history: History) -> Sequence[Violation]:
        life = self._lives.pop(record.row, None)
        if life is not None:
            self._wait(life)
        return self._compare_waiting() if self._num_waiting >= AT_ONCE else ()

    def _wait(self, life: _Life) -> None:
        if life.empty:
            return
        if self._compute is None:
            self.tally.not_recomputed += 1
            return
        self._waiting.append(life)
        self._num_waiting += len(life)

    # ---- what is computed ----

    def _compare_waiting(self) -> Sequence[Violation]:
        if not self._waiting or self._compute is None:
            return ()
        lives, self._waiting, self._num_waiting = self._waiting, [], 0
        computed = self._compute([life.recorded() for life in lives])
        return [
            violation for life, again in zip(lives, computed, strict=True) for violation in self._compare(life, again)
        ]

    def _compare(self, life: _Life, again: Computed | None) -> Iterator[Violation]:
        """The first difference of a request: what follows it is an echo."""
        tally = self.tally
        if again is None:
            tally.of_other_weights += len(life) - life.num_prompt
            return
        tally.requests += 1
        tally.tokens += len(again.tokens)
        tally.scores += sum(len(scored.positions) for scored in life.scored)
        tally.vectors += life.embedded is not None
        wrong = _other_tokens(life, again), _other_scores(life, again), _other_vector(life, again)
        for record, text in chain(*wrong):
            yield Violation(self.name, text, record, life.request)
            return


def _other_tokens(life: _Life, again: Computed) -> Iterator[tuple[int, str]]:
    before = len(life.known) - life.num_prompt
    recorded, computed = [*life.known[life.num_prompt :].tolist(), *life.output], again.tokens.tolist()
    if recorded == computed:
        return
    for index, (said, drawn) in enumerate(zip(recorded, computed, strict=True)):
        if said != drawn:
            where = f"output token {index}, at position {life.num_prompt + index},"
            record = life.records[index - before] if index >= before else 0
            yield record, f"{where} is recorded as {said}; computed again it is {drawn}"


def _other_scores(life: _Life, again: Computed) -> Iterator[tuple[int, str]]:
    for scored in life.scored:
        positions = scored.positions
        if positions.min() < 1 or positions.max() >= len(life):
            return  # `logprobs_as_asked` names it, and a wrong number of likely tokens
        chosen, tops = again.chosen[positions], again.top[positions]
        kept = ~np.isnan(tops)
        top_tokens, top = again.top_tokens[positions][kept], tops[kept]
        other = scored.chosen.view(np.int32) != chosen.view(np.int32)
        if other.any():
            place = int(other.argmax())
            text = f"the log-probability of the token at position {positions[place]} is recorded as"
            yield scored.record, f"{text} {scored.chosen[place]!s}; computed again it is {chosen[place]!s}"
        widths = np.count_nonzero(kept, axis=1)
        if (widths != scored.num_top).any():
            return
        other = (top_tokens != scored.top_tokens) | (top.view(np.int32) != scored.top.view(np.int32))
        if other.any():
            place = int(np.searchsorted(np.cumsum(widths), int(other.argmax()), "right"))
            yield scored.record, f"the likeliest tokens in the place of position {positions[place]} are others"


def _other_vector(life: _Life, again: Computed) -> Iterator[tuple[int, str]]:
    if life.embedded is not None and again.digests != [life.embedded[1]]:
        number, digest = life.embedded
        found = again.digests[0].hex() if again.digests else "none"
        yield number, f"the digest of its vector is recorded as {digest.hex()}; computed again it is {found}"
