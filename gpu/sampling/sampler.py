"""From logits to tokens, a whole batch at a time, with every slot's own parameters.

    masks of grammars -> penalties -> logit bias -> stop tokens barred while the output is too short -> greedy, or a
    draw (`pawl.gpu.sampling.operations`)

Log-probabilities are those of the logits as they came, after the masks. Where a grammar allows stop tokens alone they
are not barred: its end is its end. Parameters live in host arrays indexed by slot; a row's draw is a function of that
row's logits, its slot's parameters, grammar and history, and its position. Nothing else enters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from pawl.gpu.devices import Array, Device, upload
from pawl.gpu.grammars.rows import Ruled
from pawl.gpu.sampling.draws import Draws
from pawl.gpu.sampling.mixing import row_keys
from pawl.gpu.sampling.operations import operations_on
from pawl.gpu.sampling.parameters import DrawParameters
from pawl.gpu.sampling.rivals import Rivals
from pawl.lifecycle.request import MAX_STOP_TOKENS, SamplingParameters
from pawl.lifecycle.step import Bools, Int32s, SlotAssignment


class Sampler:
    """Sampling parameters and history of every slot."""

    def __init__(self, vocab_size: int, num_slots: int, device: Device) -> None:
        """For logits on `device`."""
        self.vocab_size = vocab_size
        self.device = device
        self.num_slots = num_slots
        self._operations = operations_on(device)
        self._penalties = self._operations.make_penalties(vocab_size, num_slots, device)
        self._biases: dict[int, tuple[Int32s, Array]] = {}
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
        special = self._changed(slots) | self._scored[slots]
        return bool((self._greedy[slots] & ~special).all())

    def _changed(self, slots: Int32s) -> Bools:
        """Whose logits are adjusted before a token is chosen."""
        return self._penalised[slots] | self._biased[slots] | self._short(slots)

    def _stop_tokens(self, slot: int) -> Int32s:
        return self._stops[slot, : self._num_stops[slot]].astype(np.int32)

    def _short(self, slots: Int32s) -> Bools:
        return self._num_output[slots] < self._min_output[slots]

    def record_greedy(self, slots: Int32s, counts: Int32s | int = 1) -> None:
        """So many tokens were drawn for each of these plainly greedy rows elsewhere (in a backend's fused head)."""
        self._num_output[slots] += counts

    def sample(self, logits: Any, slots: Int32s, positions: Int32s, ruled: Ruled | None = None) -> Draws:
        """Draw one token for each row. Changes `logits` (float32 [n, vocab]) in place.

        `slots` [n] are distinct; `positions` [n] is where in its request each drawn token will stand; `ruled` are the
        rows that have a grammar.
        """
        usable = self._operations.finite_rows(logits)
        if ruled is not None:
            self._operations.apply_masks(logits, ruled)
        scored_rows = np.flatnonzero(self._scored[slots]).astype(np.int32)
        plain = self._to_score(logits, slots, scored_rows) if len(scored_rows) else None
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
        return Draws(tokens, scored_rows, self._operations.score(plain, chosen, columns), usable)

    def _to_score(self, logits: Any, slots: Int32s, rows: Int32s) -> Any:
        """The logits of these rows as they came: a copy, unless nothing that follows changes any."""
        if len(rows) == len(slots) and (self._greedy[slots] & ~self._changed(slots)).all():
            return logits
        return logits[upload(rows.astype(np.int64), self.device)]

    def _adjust(self, logits: Any, slots: Int32s, ruled: Ruled | None) -> None:
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

    def _choose(self, logits: Any, slots: Int32s, positions: Int32s) -> Any:
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
            return self._operations.draw(logits, parameters)
        tokens = logits.argmax(-1)
        device_rows = upload(rows, self.device)
        tokens[device_rows] = self._operations.draw(logits[device_rows], parameters)
        return tokens
