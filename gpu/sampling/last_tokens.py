"""Each slot's last drawn token, where it was drawn, and a step's input tokens, those still being drawn among them."""

from __future__ import annotations

from typing import Any

import numpy as np

from pawl.gpu.devices import Device, int32, upload
from pawl.gpu.ragged import chained_rows, with_chained
from pawl.lifecycle.step import Int32s, StepBatch


class LastTokens:
    """The last token of every slot, on a device."""

    def __init__(self, num_slots: int, device: Device) -> None:
        self.device = device
        self._tokens: Any = upload(np.zeros(num_slots, np.int32), device)

    def reset(self) -> None:
        """Forget every slot."""
        self._tokens[:] = 0

    def remember(self, slots: Int32s, tokens: Any) -> None:
        """`tokens` [n] were drawn for the distinct `slots` [n]."""
        self._tokens[upload(slots.astype(np.int64), self.device)] = int32(tokens)

    def expect(self, slots: Int32s) -> None:
        """Another stage of a pipeline draws for the distinct `slots` [n]."""

    def resolve(self, batch: StepBatch, offsets: Int32s) -> Any:
        """The batch's input tokens, int32 [t] on the device, chained ones included. Segment i has the rows from
        offsets[i] on."""
        if not batch.chained.any():
            return upload(batch.tokens, self.device)
        chained = self._tokens[upload(batch.slots[batch.chained].astype(np.int64), self.device)]
        if len(batch.tokens) == 0:
            return chained
        # Whatever stands in the chained rows is overwritten on the device, where the drawn tokens are.
        resolved = upload(with_chained(batch, offsets, np.int32(0)), self.device)
        resolved[upload(chained_rows(batch, offsets), self.device)] = chained
        return resolved
