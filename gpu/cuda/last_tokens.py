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
        remember(self._tokens, self._uploaded(slots), tokens)

    def resolve(self, batch: StepBatch, offsets: Int32s) -> Tensor:
        """See `LastTokens.resolve`."""
        if not batch.chained.any():
            return self._uploaded(batch.tokens)
        tokens = with_chained(batch, offsets, np.int32(-1) - batch.slots[batch.chained])
        return resolve(self._uploaded(tokens), self._tokens)

    def _uploaded(self, tokens: Int32s) -> Tensor:
        assert self.device is not None, "Triton computes on tensors"
        return upload(tokens, self.device)
