"""Each slot's last token, by kernels: one copy to the device and one kernel for the tokens of a step."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pawl.gpu.devices import upload
from pawl.gpu.kernels.tokens import remember, resolve
from pawl.gpu.ragged import with_chained
from pawl.gpu.sampling.last_tokens import LastTokens
from pawl.lifecycle.step import Int32s, StepBatch


class KernelLastTokens(LastTokens):
    """`LastTokens` in Triton. A chained token travels as -1 - slot."""

    def remember(self, slots: Int32s, tokens: Tensor) -> None:
        """See `LastTokens.remember`."""
        remember(self._tokens, upload(slots, self.device), tokens)

    def resolve(self, batch: StepBatch, offsets: Int32s) -> Tensor:
        """See `LastTokens.resolve`."""
        if not batch.chained.any():
            return upload(batch.tokens, self.device)
        tokens = with_chained(batch, offsets, np.int32(-1) - batch.slots[batch.chained])
        return resolve(upload(tokens, self.device), self._tokens)
