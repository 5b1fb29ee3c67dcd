"""The sampler by kernels: no sorting, nothing asked of the device, and a row's draw depends on nothing but the row."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.devices import upload
from pawl.gpu.kernels.sampling import draw
from pawl.gpu.sampling.mixing import row_keys
from pawl.gpu.sampling.sampler import Sampler
from pawl.lifecycle.step import Int32s


class KernelSampler(Sampler):
    """`Sampler` whose tokens are drawn in Triton. Tokens of equal score are kept or left out together by top-k and
    top-p, where `pawl.gpu.sampling.truncation` keeps the lower ones; apart from that and rounding its draws are the
    same."""

    def _choose(self, logits: Tensor, slots: Int32s, positions: Int32s) -> Tensor:
        greedy = self._greedy[slots]
        if greedy.all():
            return logits.argmax(-1)
        keys = row_keys(self._seed[slots], positions)
        # All parameters in one copy, as 32-bit words. A greedy row's temperature is 0, which nothing may be divided by.
        floats = (np.where(greedy, np.float32(1.0), self._temperature[slots]), self._top_p[slots], self._min_p[slots])
        words = [part.astype(np.float32).view(np.int32) for part in floats]
        words += [self._top_k[slots], greedy.astype(np.int32)]
        assert self.device is not None, "Triton computes on tensors"
        packed = upload(np.concatenate((*words, keys.reshape(-1))), self.device)
        temperature, top_p, min_p, top_k, is_greedy = packed[: 5 * len(slots)].view(5, len(slots))
        drawn = draw(
            logits,
            temperature=temperature.view(torch.float32),
            top_k=top_k,
            top_p=top_p.view(torch.float32),
            min_p=min_p.view(torch.float32),
            keys=packed[5 * len(slots) :].view(len(slots), 2),
            greedy=is_greedy.bool(),
        )
        return drawn.long()
