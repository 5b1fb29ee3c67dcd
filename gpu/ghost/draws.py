"""Requests to a ghost that want more than the likeliest token: sampling and scores, with numpy alone.

    masks of grammars -> penalties -> logit bias -> stop tokens barred while the output is too short -> greedy, or
    temperature, top-k, top-p, min-p and noise

as `pawl.gpu.sampling.sampler` has it; the vocabulary is so small that a slot's history is a row of counts, and that
every row is sorted. A row's draw is a function of its own state, parameters, grammar, history and position.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.ghost.language import VOCABULARY_SIZE, Float32s, logits_of
from pawl.gpu.ghost.memory import Computed
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.grammars.rows import GrammarRows, Ruled, unpacked
from pawl.gpu.rounds import Rows
from pawl.gpu.sampling.mixing import draw_keys, mix64
from pawl.gpu.sampling.rivals import LIKELIEST, Columns, Rivals
from pawl.lifecycle.step import Int32s, PromptLogprobs, SlotAssignment, StepBatch, StepLogprobs

Bools: TypeAlias = NDArray[np.bool_]
Float64s: TypeAlias = NDArray[np.float64]

_TOKENS = np.arange(VOCABULARY_SIZE, dtype=np.uint64)
_TOKEN_STRIDE = np.uint64(0x9FB21C651E98DF25)


class Drawn(NamedTuple):
    """What the special ones of some rows got."""

    tokens: Int32s
    """One for each of them."""
    logprobs: StepLogprobs | None
    """Over all rows, NaN and token 0 where nobody asked."""
    refused: Bools | None = None
    """Those that their grammars do not accept."""


class Scores(NamedTuple):
    """Log-probabilities of some rows."""

    chosen: Float32s
    """[n]"""
    top_tokens: Int32s
    """[n, k], of each row the likeliest, then the named"""
    top: Float32s
    """[n, k]"""


class GhostDraws:
    """Sampling parameters and histories of the slots of one ghost; a row of each array for a slot."""

    def __init__(self, num_slots: int, grammars: Grammars | None) -> None:
        self._num_slots = num_slots
        self._grammars = GrammarRows(grammars, num_slots)
        self._rivals = Rivals(num_slots)
        self.reset()

    def reset(self) -> None:
        """Forget every slot."""
        slots = self._num_slots
        self._grammars.reset()
        self._temperature = np.zeros(slots)
        self._top_k = np.zeros(slots, np.int32)
        self._top_p = np.ones(slots)
        self._min_p = np.zeros(slots)
        self._truncates = np.zeros(slots, np.bool_)
        """Whether any of these three leaves tokens out."""
        self._adjusts = np.zeros(slots, np.bool_)
        """Whether anything moves its logits."""
        self._seed = np.zeros(slots, np.uint64)
        self._penalties = np.zeros((slots, 3), np.float32)
        """Repetition, presence, frequency."""
        self._bias = np.zeros((slots, VOCABULARY_SIZE), np.float32)
        self._stops = np.zeros((slots, VOCABULARY_SIZE), np.bool_)
        self._seen = np.zeros((slots, VOCABULARY_SIZE), np.bool_)
        """Tokens of prompt or output."""
        self._counts = np.zeros((slots, VOCABULARY_SIZE), np.int32)
        """How often each token is in the output."""
        self._num_output = np.zeros(slots, np.int32)
        self._min_output = np.zeros(slots, np.int32)
        self._scores = np.zeros(slots, np.bool_)
        self._rivals.reset()
        self._scores_prompt = np.zeros(slots, np.bool_)
        self._kept: dict[int, tuple[int, Float32s]] = {}
        """slot -> (position, the log-probabilities [1, vocabulary] of the token after it), between two chunks."""

    def admit(self, admissions: Sequence[SlotAssignment]) -> None:
        """Take over the parameters of requests that enter a slot; what it held before is forgotten."""
        self._grammars.admit(admissions)
        for admission in admissions:
            slot, sampling = admission.slot, admission.sampling
            self._temperature[slot] = 0.0 if sampling.top_k == 1 else sampling.temperature
            self._top_k[slot] = sampling.top_k if sampling.top_k > 0 else VOCABULARY_SIZE
            self._top_p[slot] = sampling.top_p
            self._min_p[slot] = sampling.min_p
            self._truncates[slot] = sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0
            self._adjusts[slot] = bool(sampling.penalised or sampling.logit_bias or sampling.min_new_tokens)
            self._seed[slot] = sampling.seed & 0xFFFFFFFFFFFFFFFF
            self._penalties[slot] = sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty
            self._bias[slot] = 0.0
            for token, bias in sampling.logit_bias.items():
                self._bias[slot, token] = bias
            self._stops[slot] = False
            self._stops[slot, list(sampling.stop_token_ids)] = True
            self._seen[slot] = False
            self._seen[slot, admission.history] = True
            outputs = admission.history[admission.num_prompt :]
            self._counts[slot] = np.bincount(outputs, minlength=VOCABULARY_SIZE)
            self._num_output[slot] = admission.num_output
            self._min_output[slot] = sampling.min_new_tokens
            self._scores[slot] = sampling.top_logprobs is not None
            self._rivals.admit(slot, sampling)
            # A request that returns with output has had its prompt scored before it was retracted.
            self._scores_prompt[slot] = sampling.prompt_logprobs and admission.num_output == 0
            self._kept.pop(slot, None)

    def score_prompts(self, batch: StepBatch, computed: Computed) -> tuple[PromptLogprobs, ...]:
        """Scores of the prompts that are part of this step."""
        prompts = tuple(
            scores
            for segment in np.flatnonzero(self._scores_prompt[batch.slots]).tolist()
            if (scores := self._score_prompt(batch, computed, segment)) is not None
        )
        self._scores_prompt[batch.slots[batch.samples]] = False
        return prompts

    def draw(self, where: Rows, computed: Computed, special: Bools) -> Drawn:
        """Tokens for those rows that are `special`."""
        rows, slots = where.rows[special], where.slots[special]
        if not len(slots):
            return Drawn(np.zeros(0, np.int32), None)
        logits = logits_of(computed.states[rows], computed.tokens[rows])
        ruled = self._grammars.masks(slots)
        if ruled is not None:
            logits[ruled.rows] = np.where(unpacked(ruled.bits, VOCABULARY_SIZE), logits[ruled.rows], -np.inf)
        adjusted = self._adjusted(logits, slots, ruled) if self._adjusts[slots].any() else logits
        tokens = self._choose(adjusted, slots, where.positions[special])
        self._seen[slots, tokens] = True
        self._counts[slots, tokens] += 1
        self._num_output[slots] += 1
        refused = None if ruled is None else ruled.accept(tokens)
        return Drawn(tokens, self._scored(logits, tokens, slots, special), refused)

    # ---- tokens ----

    def _adjusted(self, logits: Float32s, slots: Int32s, ruled: Ruled | None) -> Float32s:
        """Logits after penalties, bias and barred stop tokens."""
        repetition, presence, frequency = (self._penalties[slots, kind, None] for kind in range(3))
        counts = self._counts[slots]
        repeated = np.where(logits > 0, logits / repetition, logits * repetition)
        adjusted = np.where(self._seen[slots], repeated, logits)
        adjusted += self._bias[slots] - presence * (counts > 0) - frequency * counts
        short = self._num_output[slots] < self._min_output[slots]
        if ruled is not None:
            for row in np.flatnonzero(short).tolist():
                stops = np.flatnonzero(self._stops[slots[row]]).astype(np.int32)
                short[row] = not ruled.nothing_but(row, stops)
        adjusted[self._stops[slots] & short[:, None]] = -np.inf
        return adjusted

    def _choose(self, logits: Float32s, slots: Int32s, positions: Int32s) -> Int32s:
        """One token for each row; `positions` are where they will stand."""
        tokens: Int32s = logits.argmax(axis=1).astype(np.int32)
        rows = np.flatnonzero(self._temperature[slots] > 0)
        if not len(rows):
            return tokens
        slots = slots[rows]
        # Subtracting the maximum first keeps tiny temperatures from overflowing.
        scaled = (logits[rows] - logits[rows].max(axis=1, keepdims=True)) / self._temperature[slots, None]
        truncated = np.flatnonzero(self._truncates[slots])
        if len(truncated):
            scaled[truncated] = self._truncated(scaled[truncated], slots[truncated])
        noise = _gumbel(draw_keys(self._seed[slots], positions[rows]))
        tokens[rows] = (scaled + noise).argmax(axis=1)
        return tokens

    def _truncated(self, scaled: Float64s, slots: Int32s) -> Float64s:
        """Logits without the tokens that top-k, then top-p, then min-p leave out; the likeliest always stays."""
        order = np.argsort(-scaled, axis=1, kind="stable")
        values = np.take_along_axis(scaled, order, axis=1)
        values[np.arange(VOCABULARY_SIZE) >= self._top_k[slots, None]] = -np.inf
        weights = np.exp(values)
        weights /= weights.sum(axis=1, keepdims=True)
        out = np.cumsum(weights, axis=1) - weights >= self._top_p[slots, None]
        out |= weights < self._min_p[slots, None] * weights[:, :1]
        out[:, 0] = False
        values[out] = -np.inf
        left = np.empty_like(values)
        np.put_along_axis(left, order, values, axis=1)
        return left

    # ---- scores ----

    def _scored(self, logits: Float32s, tokens: Int32s, slots: Int32s, special: Bools) -> StepLogprobs | None:
        """Scores of the drawn `tokens` whose requests asked, spread over all rows."""
        asked = np.flatnonzero(self._scores[slots])
        if not len(asked):
            return None
        scores = _score(_log_softmax(logits[asked]), tokens[asked], self._rivals.columns(slots[asked]))
        num_rows, width = len(special), scores.top.shape[1]
        chosen = np.full(num_rows, np.nan, np.float32)
        top = np.full((num_rows, width), np.nan, np.float32)
        top_tokens = np.zeros((num_rows, width), np.int32)
        places = np.flatnonzero(special)[asked]
        chosen[places], top_tokens[places], top[places] = scores
        return StepLogprobs(chosen, top_tokens, top)

    def _score_prompt(self, batch: StepBatch, computed: Computed, segment: int) -> PromptLogprobs | None:
        """Scores of a chunk's tokens, the first by what was kept of the chunk before; None: nothing to score."""
        slot, start = int(batch.slots[segment]), int(batch.starts[segment])
        rows = slice(computed.offsets[segment], computed.offsets[segment + 1])
        tokens = computed.tokens[rows]
        logprobs = _log_softmax(logits_of(computed.states[rows], tokens))
        kept = self._kept.pop(slot, None)
        if not batch.samples[segment]:
            self._kept[slot] = start + len(tokens) - 1, logprobs[-1:]
        if kept is not None and kept[0] == start - 1:
            start, logprobs = start - 1, np.concatenate((kept[1], logprobs[:-1]))
        else:
            tokens, logprobs = tokens[1:], logprobs[:-1]
        if not len(tokens):
            return None
        columns = self._rivals.columns(np.array([slot], np.int32)).repeated(len(tokens))
        scores = _score(logprobs, tokens, columns)
        ranks = (logprobs >= scores.chosen[:, None]).sum(axis=1).astype(np.int32)
        return PromptLogprobs(slot, start, *scores, ranks)


def _gumbel(keys: NDArray[np.uint64]) -> Float64s:
    """Gumbel noise for every token of rows with `keys`, float64 [n, vocabulary]: the winner of logit + noise is a draw
    from the softmax."""
    words = mix64(keys[:, None] ^ (_TOKENS * _TOKEN_STRIDE))
    uniform = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise: Float64s = -np.log(-np.log(uniform))
    return noise


def _log_softmax(logits: Float32s) -> Float32s:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values.astype(np.float32)


def _score(logprobs: Float32s, tokens: Int32s, columns: Columns) -> Scores:
    """Log-probabilities of `tokens` [n] and of those in `columns` under `logprobs` [n, vocabulary]."""
    top_tokens = np.argsort(-logprobs, axis=1, kind="stable")[:, : columns.width]
    if columns.named is not None:
        top_tokens = np.where(columns.named == LIKELIEST, top_tokens, columns.named)
    chosen = np.take_along_axis(logprobs, tokens[:, None], axis=1)[:, 0]
    return Scores(chosen, top_tokens.astype(np.int32), np.take_along_axis(logprobs, top_tokens, axis=1))
