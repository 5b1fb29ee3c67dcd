"""From logits to tokens, a whole batch at a time, with every slot's own parameters.

    masks of grammars -> penalties -> logit bias -> stop tokens barred while the output is too short -> greedy, or a
    draw (`pawl.gpu.sampling.truncation`)

Log-probabilities are those of the logits as they came, after the masks. Where a grammar allows stop tokens alone they
are not barred: its end is its end. Parameters live in host arrays indexed by slot; a row's draw is a function of that
row's logits, its slot's parameters, grammar and history, and its position. Nothing else enters.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.backend import NO_TOKEN
from pawl.gpu.devices import upload
from pawl.gpu.grammars.rows import Ruled
from pawl.gpu.sampling.masking import apply_masks
from pawl.gpu.sampling.noise import row_keys
from pawl.gpu.sampling.penalties import Penalties
from pawl.gpu.sampling.rivals import Rivals
from pawl.gpu.sampling.scoring import Scores, score
from pawl.gpu.sampling.truncation import DrawParameters, draw
from pawl.lifecycle.request import MAX_STOP_TOKENS, SamplingParameters
from pawl.lifecycle.step import Bools, Int32s, SlotAssignment, StepLogprobs


@dataclass(frozen=True, eq=False)
class Draws:
    """What one call drew, still on the device."""

    tokens: Tensor
    """int64 [n]"""
    scored_rows: Int32s
    """Rows whose request asked for log-probabilities."""
    scores: Scores | None
    """Scores of `scored_rows`; None where there are none."""
    usable: Tensor
    """bool [n]: whether all logits of the row were finite numbers. Where not, the token is any."""

    @classmethod
    def plain(cls, tokens: Tensor, usable: Tensor) -> Draws:
        """Tokens without scores."""
        return cls(tokens, np.zeros(0, np.int32), None, usable)

    @classmethod
    def greedy(cls, tokens: Tensor) -> Draws:
        """What a `GreedyBackend` gave, NO_TOKEN among it."""
        return cls.plain(tokens.clamp(min=0), tokens != NO_TOKEN)

    @classmethod
    def none(cls, device: torch.device) -> Draws:
        """No rows."""
        return cls.plain(*(torch.zeros(0, dtype=dtype, device=device) for dtype in (torch.int64, torch.bool)))

    def tensors(self) -> list[Tensor]:
        """What the host will want to know."""
        return [self.tokens, self.usable, *([] if self.scores is None else self.scores.tensors())]

    def moved(self, tensors: list[Tensor]) -> Draws:
        """The same draws, with `tensors()` somewhere else."""
        tokens, usable, *scores = tensors
        return Draws(tokens, self.scored_rows, Scores(*scores) if scores else None, usable)

    def unusable(self) -> Bools | None:
        """On the host: rows without a token; None where there is none of them."""
        usable: Bools = self.usable.cpu().numpy()
        return None if usable.all() else ~usable

    def logprobs(self) -> StepLogprobs | None:
        """On the host, aligned with `tokens`; NaN and token 0 in rows that did not ask."""
        if self.scores is None:
            return None
        num_rows, width = len(self.tokens), self.scores.top.shape[1]
        chosen = np.full(num_rows, np.nan, np.float32)
        top = np.full((num_rows, width), np.nan, np.float32)
        top_tokens = np.zeros((num_rows, width), np.int32)
        chosen[self.scored_rows] = self.scores.chosen.cpu().numpy()
        top[self.scored_rows] = self.scores.top.cpu().numpy()
        top_tokens[self.scored_rows] = self.scores.top_tokens.cpu().numpy()
        return StepLogprobs(chosen, top_tokens, top)


def finite_rows(logits: Tensor) -> Tensor:
    """bool [n]: whether every one of a row's logits [n, vocab] is a finite number."""
    # The extremes are NaN where anything is: one pass, and nothing as large as the logits is made.
    lowest, highest = logits.aminmax(dim=-1)
    return lowest.isfinite() & highest.isfinite()


class Sampler:
    """Sampling parameters and history of every slot."""

    def __init__(self, vocab_size: int, num_slots: int, device: torch.device | str = "cpu") -> None:
        self.vocab_size = vocab_size
        self.device = torch.device(device)
        self.num_slots = num_slots
        self._penalties = Penalties(vocab_size, num_slots, self.device)
        self._biases: dict[int, tuple[Int32s, Tensor]] = {}
        self._allocate()

    def _allocate(self) -> None:
        slots = self.num_slots
        self._temperature = np.zeros(slots, np.float32)
        self._top_k = np.zeros(slots, np.int32)
        self._top_p = np.ones(slots, np.float32)
        self._min_p = np.zeros(slots, np.float32)
        self._seed = np.zeros(slots, np.uint64)
        self._greedy = np.ones(slots, np.bool_)
        self._penalised = np.zeros(slots, np.bool_)
        self._biased = np.zeros(slots, np.bool_)
        self._rivals = Rivals(slots)
        self._scored = np.zeros(slots, np.bool_)
        self._num_output = np.zeros(slots, np.int32)
        self._min_output = np.zeros(slots, np.int32)
        self._stops = np.zeros((slots, MAX_STOP_TOKENS), np.int64)
        self._num_stops = np.zeros(slots, np.int32)

    def reset(self) -> None:
        """Forget every slot."""
        self._allocate()
        self._penalties.reset()
        self._biases.clear()

    def admit(self, admissions: Iterable[SlotAssignment]) -> None:
        """Take over the parameters of requests that enter a slot; what the slot held before is forgotten."""
        for admission in admissions:
            self._admit(admission.slot, admission.sampling, admission)

    def _admit(self, slot: int, sampling: SamplingParameters, admission: SlotAssignment) -> None:
        # Keeping only the likeliest token is greedy, whatever the temperature.
        self._greedy[slot] = sampling.greedy or sampling.top_k == 1
        self._temperature[slot] = sampling.temperature
        self._top_k[slot] = min(max(sampling.top_k, 0), self.vocab_size)
        self._top_p[slot] = sampling.top_p
        self._min_p[slot] = sampling.min_p
        self._seed[slot] = sampling.seed & 0xFFFFFFFFFFFFFFFF
        self._penalised[slot] = sampling.penalised
        self._scored[slot] = sampling.top_logprobs is not None
        self._rivals.admit(slot, sampling)
        self._num_output[slot] = admission.num_output
        self._min_output[slot] = sampling.min_new_tokens
        stops = sampling.stop_token_ids
        self._num_stops[slot] = len(stops)
        self._stops[slot, : len(stops)] = stops
        self._penalties.admit(slot, sampling, admission.history, admission.num_prompt)
        self._biased[slot] = bool(sampling.logit_bias)
        if sampling.logit_bias:
            ids = np.fromiter(sampling.logit_bias.keys(), np.int32, len(sampling.logit_bias))
            values = np.fromiter(sampling.logit_bias.values(), np.float32, len(ids))
            self._biases[slot] = ids, upload(values, self.device)
        else:
            self._biases.pop(slot, None)

    def plainly_greedy(self, slots: Int32s) -> bool:
        """Whether every one of these rows only wants the largest of its logits as they are, and nothing else."""
        special = self._penalised[slots] | self._biased[slots] | self._scored[slots] | self._short(slots)
        return bool((self._greedy[slots] & ~special).all())

    def _stop_tokens(self, slot: int) -> Int32s:
        return self._stops[slot, : self._num_stops[slot]].astype(np.int32)

    def _short(self, slots: Int32s) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        return self._num_output[slots] < self._min_output[slots]

    def record_greedy(self, slots: Int32s, counts: Int32s | int = 1) -> None:
        """So many tokens were drawn for each of these plainly greedy rows elsewhere (in a backend's fused head)."""
        self._num_output[slots] += counts

    def sample(self, logits: Tensor, slots: Int32s, positions: Int32s, ruled: Ruled | None = None) -> Draws:
        """Draw one token for each row. Changes `logits` (float32 [n, vocab]) in place.

        `slots` [n] are distinct; `positions` [n] is where in its request each drawn token will stand; `ruled` are the
        rows that have a grammar.
        """
        usable = finite_rows(logits)
        if ruled is not None:
            apply_masks(logits, ruled)
        scored_rows = np.flatnonzero(self._scored[slots]).astype(np.int32)
        # A copy: what follows changes the logits, and the scores are of the logits as they came.
        plain = logits[upload(scored_rows.astype(np.int64), self.device)] if len(scored_rows) else None
        self._adjust(logits, slots, ruled)
        tokens = self._choose(logits, slots, positions)
        self._num_output[slots] += 1
        penalised = np.flatnonzero(self._penalised[slots])
        if len(penalised):
            self._penalties.count(slots[penalised], tokens[upload(penalised, self.device)])
        if plain is None:
            return Draws.plain(tokens, usable)
        columns = self._rivals.columns(slots[scored_rows])
        chosen = tokens[upload(scored_rows.astype(np.int64), self.device)]
        return Draws(tokens, scored_rows, score(plain, chosen, columns), usable)

    def _adjust(self, logits: Tensor, slots: Int32s, ruled: Ruled | None) -> None:
        """Penalties, bias and barred stop tokens, in place."""
        penalised = np.flatnonzero(self._penalised[slots])
        if len(penalised):
            if len(penalised) == len(slots):
                self._penalties.apply(logits, slots)
            else:
                penalised_rows = upload(penalised, self.device)
                part = logits[penalised_rows]
                self._penalties.apply(part, slots[penalised])
                logits[penalised_rows] = part
        for row in np.flatnonzero(self._biased[slots]):
            ids, values = self._biases[int(slots[row])]
            logits[int(row), upload(ids.astype(np.int64), self.device)] += values
        short = np.flatnonzero(self._short(slots))
        if len(short) and ruled is not None:
            short = short[[not ruled.nothing_but(row, self._stop_tokens(slots[row])) for row in short.tolist()]]
        if len(short):
            short_slots = slots[short]
            rows, columns = np.nonzero(np.arange(MAX_STOP_TOKENS)[None] < self._num_stops[short_slots][:, None])
            barred = self._stops[short_slots[rows], columns]
            logits[upload(short[rows], self.device), upload(barred, self.device)] = float("-inf")

    def _choose(self, logits: Tensor, slots: Int32s, positions: Int32s) -> Tensor:
        greedy = self._greedy[slots]
        if greedy.all():
            return logits.argmax(-1)
        rows = np.flatnonzero(~greedy)
        drawn_slots = slots[rows]
        parameters = DrawParameters(
            temperature=self._temperature[drawn_slots],
            top_k=self._top_k[drawn_slots],
            top_p=self._top_p[drawn_slots],
            min_p=self._min_p[drawn_slots],
            keys=row_keys(self._seed[drawn_slots], positions[rows]),
        )
        if len(rows) == len(slots):
            return draw(logits, parameters)
        tokens = logits.argmax(-1)
        device_rows = upload(rows, self.device)
        tokens[device_rows] = draw(logits[device_rows], parameters)
        return tokens
