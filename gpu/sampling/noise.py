"""Sampling noise that is a pure function of (seed, position, token id).

No generator state exists, so a draw does not depend on what else is in the batch, on the order of rows, or on how often
a step was run: the counter-based idea of Salmon et al. 2011 ("Parallel random numbers: as easy as 1, 2, 3") with the
integer mixer of Wellons ("hash prospector") as the function. The winner of `logit + gumbel` is a draw from the softmax.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.sampling.mixing import FIRST, SECOND, SPREAD


def _signed(word: np.uint32) -> int:
    """The int32 with the bits of an unsigned 32-bit word; torch multiplies int32 modulo 2^32."""
    return int(word.view(np.int32))


_SPREAD, _FIRST, _SECOND = map(_signed, (SPREAD, FIRST, SECOND))


def _mix32(words: Tensor, scratch: Tensor) -> None:
    """Mix int32 words in place. Right shifts are made logical by masking off the copied sign bits."""
    for shift, factor in ((16, _FIRST), (15, _SECOND), (16, None)):
        torch.bitwise_right_shift(words, shift, out=scratch)
        words.bitwise_xor_(scratch.bitwise_and_((1 << (32 - shift)) - 1))
        if factor is not None:
            words.mul_(factor)


def gumbel(keys: Tensor, tokens: Tensor) -> Tensor:
    """Gumbel noise, float32 [n, k], for the token ids `tokens` (int32 [n, k] or [1, k]) of rows with `keys` [n, 2].

    -log(-log1p(-v)) with v uniform in (0, 1): the small v that win have full relative precision in float32.
    """
    # Two buffers for everything: for a whole vocabulary, fresh memory costs more than the arithmetic.
    words = tokens * _SPREAD ^ keys[:, :1]
    scratch = torch.empty_like(words)
    _mix32(words, scratch)
    _mix32(words.add_(keys[:, 1:]), scratch)
    uniform = scratch.view(torch.float32).copy_(words.bitwise_and_(0x7FFFFFFF))
    uniform.mul_(2.0**-31).add_(2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def all_tokens(vocab_size: int, device: torch.device) -> Tensor:
    """Every token id, int32 [1, vocab]."""
    return torch.arange(vocab_size, dtype=torch.int32, device=device)[None]
