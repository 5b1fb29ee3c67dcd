"""Masks of grammars on logits: what may not come next has no score."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.devices import upload
from pawl.gpu.grammars.rows import Ruled, unpacked

_BITS = 32


def apply_masks(logits: Tensor, ruled: Ruled) -> None:
    """Set the logits [n, vocab] of tokens that are not allowed to minus infinity, in the rows of `ruled` and in no
    other, in place."""
    vocab_size = logits.shape[1]
    if logits.device.type == "cpu":
        barred = torch.from_numpy(~unpacked(ruled.bits, vocab_size))
    else:
        barred = barred_by(upload(ruled.bits, logits.device), vocab_size)
    if len(ruled.rows) == len(logits):
        logits.masked_fill_(barred, float("-inf"))
        return
    rows = upload(ruled.rows.astype(np.int64), logits.device)
    logits[rows] = logits[rows].masked_fill_(barred, float("-inf"))


def barred_by(words: Tensor, vocab_size: int) -> Tensor:
    """Tokens that masks (int32 [n, mask_words], on any device) do not allow, bool [n, vocab_size]. Nothing is asked of
    the device."""
    shifts = torch.arange(_BITS, dtype=torch.int32, device=words.device)
    barred = ((words[:, :, None] >> shifts) & 1 == 0).flatten(1)[:, :vocab_size]
    return torch.nn.functional.pad(barred, (0, vocab_size - barred.shape[1]), value=True)
