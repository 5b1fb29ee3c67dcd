"""Each slot's last drawn token, where it was drawn, and a step's input tokens, those still being drawn among them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.devices import upload
from pawl.lifecycle.step import Int32s, StepBatch


class LastTokens:
    """The last token of every slot, on a device, in plain torch."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.device = device
        self._tokens = torch.zeros(num_slots, dtype=torch.int32, device=device)

    def reset(self) -> None:
        """Forget every slot."""
        self._tokens.zero_()

    def remember(self, slots: Int32s, tokens: Tensor) -> None:
        """`tokens` [n] were drawn for the distinct `slots` [n]."""
        self._tokens[upload(slots.astype(np.int64), self.device)] = tokens.int()

    def resolve(self, batch: StepBatch, offsets: Int32s) -> Tensor:
        """The batch's input tokens, int32 [t] on the device, chained ones included. Segment i has the rows from
        offsets[i] on."""
        if not batch.chained.any():
            return upload(batch.tokens, self.device)
        chained = self._tokens[upload(batch.slots[batch.chained].astype(np.int64), self.device)]
        if len(batch.tokens) == 0:
            return chained
        # Whatever stands in the chained rows is overwritten on the device, where the drawn tokens are.
        resolved = upload(with_chained(batch, offsets, np.int32(0)), self.device)
        resolved[upload(_chained_rows(batch, offsets), self.device)] = chained
        return resolved


def _chained_rows(batch: StepBatch, offsets: Int32s) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return (offsets[1:] - 1)[batch.chained].astype(np.int64)


def with_chained(batch: StepBatch, offsets: Int32s, chained: Int32s | np.int32) -> Int32s:
    """The batch's tokens int32 [t], with `chained` (one, or one for each chained segment) in the chained rows."""
    rows = _chained_rows(batch, offsets)
    given = np.ones(int(offsets[-1]), np.bool_)
    given[rows] = False
    tokens = np.empty(int(offsets[-1]), np.int32)
    tokens[given] = batch.tokens
    tokens[rows] = chained
    return tokens
