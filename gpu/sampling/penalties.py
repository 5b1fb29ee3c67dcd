"""What a request's own past does to its logits: repetition, presence and frequency penalties.

Counts are kept only for slots whose request asked for a penalty: a vocabulary of counters for each slot would be
hundreds of megabytes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.devices import upload
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import Float32s, Int32s

_FIRST_CAPACITY = 4


class TorchPenalties:
    """`Penalties` on a device: token counts of the slots that are penalised."""

    def __init__(self, vocab_size: int, num_slots: int, device: torch.device) -> None:
        self.device = device
        self._rows: dict[int, int] = {}
        self._free = list(range(_FIRST_CAPACITY))
        self._outputs = torch.zeros(_FIRST_CAPACITY, vocab_size, dtype=torch.int32, device=device)
        """[capacity, vocab] how often each token was drawn."""
        self._prompts = torch.zeros(_FIRST_CAPACITY, vocab_size, dtype=torch.bool, device=device)
        """[capacity, vocab] whether the prompt has the token."""
        self._factors: Float32s = np.zeros((num_slots, 3), np.float32)
        """[num_slots, 3] repetition, presence, frequency."""

    def reset(self) -> None:
        """Forget every slot."""
        self._free.extend(self._rows.values())
        self._rows.clear()

    def admit(self, slot: int, sampling: SamplingParameters, history: Int32s, num_prompt: int) -> None:
        """A new request in `slot`; `history` is its prompt (`num_prompt` tokens), then what it has drawn."""
        if slot in self._rows:
            self._free.append(self._rows.pop(slot))
        if not sampling.penalised:
            return
        if not self._free:
            self._grow()
        row = self._rows[slot] = self._free.pop()
        self._factors[slot] = sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty
        tokens = upload(history.astype(np.int64), self.device)
        self._prompts[row] = False
        self._prompts[row, tokens[:num_prompt]] = True
        drawn = tokens[num_prompt:]
        # Not bincount: it waits for the device to learn the largest token.
        self._outputs[row].zero_().index_add_(0, drawn, torch.ones_like(drawn, dtype=torch.int32))

    def _grow(self) -> None:
        capacity = len(self._outputs)
        self._outputs = torch.cat((self._outputs, torch.zeros_like(self._outputs)))
        self._prompts = torch.cat((self._prompts, torch.zeros_like(self._prompts)))
        self._free.extend(range(capacity, 2 * capacity))

    def _rows_of(self, slots: Int32s) -> Tensor:
        return upload(np.array([self._rows[int(slot)] for slot in slots], np.int64), self.device)

    def apply(self, logits: Tensor, slots: Int32s) -> None:
        """Penalise logits, float32 [n, vocab], in place, for rows of penalised `slots` [n]."""
        rows = self._rows_of(slots)
        factors = self._factors[slots]
        repetition, presence, frequency = upload(factors, self.device)[:, :, None].unbind(1)
        counts = self._outputs[rows]
        drawn = counts > 0
        # A penalty that no row has would change nothing; it is left out because these arrays are large.
        if (factors[:, 0] != 1.0).any():
            repeated = torch.where(logits > 0, logits / repetition, logits * repetition)
            torch.where(drawn | self._prompts[rows], repeated, logits, out=logits)
        if factors[:, 2].any():
            logits.addcmul_(counts.float(), frequency, value=-1.0)
        if factors[:, 1].any():
            logits.addcmul_(drawn.float(), presence, value=-1.0)

    def count(self, slots: Int32s, tokens: Tensor) -> None:
        """`tokens` [n] int64 were drawn for the penalised `slots` [n]."""
        self._outputs[self._rows_of(slots), tokens] += 1
