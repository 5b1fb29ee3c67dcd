"""Log-probabilities of rows of logits in PyTorch, and whether these are numbers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from pawl.gpu.devices import upload
from pawl.gpu.sampling.draws import Scores
from pawl.gpu.sampling.rivals import LIKELIEST, Columns
from pawl.lifecycle.request import MAX_TOP_LOGPROBS

# Rows scored at a time: the log-probabilities of a long chunk over a large vocabulary would take gigabytes.
BLOCK = 64


def finite_rows(logits: Tensor) -> Tensor:
    """bool [n]: whether every one of a row's logits [n, vocab] is a finite number."""
    # The extremes are NaN where anything is: one pass, and nothing as large as the logits is made.
    lowest, highest = logits.aminmax(dim=-1)
    return lowest.isfinite() & highest.isfinite()


def score(logits: Tensor, chosen: Tensor, columns: Columns, *, ranked: bool = False) -> Scores:
    """See `Operations.score`."""
    blocks = [slice(first, first + BLOCK) for first in range(0, len(chosen), BLOCK)]
    parts = [_score_block(logits[block], chosen[block], columns, block, ranked) for block in blocks]
    if len(parts) == 1:
        return parts[0]
    return Scores(*map(torch.cat, zip(*(part.arrays() for part in parts), strict=True)))


def _score_block(logits: Tensor, chosen: Tensor, columns: Columns, block: slice, ranked: bool) -> Scores:
    # The softmax kernel adds up each row by itself, so a row's scores do not depend on its batch.
    logprobs = logits.log_softmax(-1)
    # Always as many: which of equally likely tokens comes first depends on how many are looked for.
    top, top_tokens = logprobs.topk(min(MAX_TOP_LOGPROBS, logprobs.shape[1]))
    own, width = logprobs.gather(1, chosen[:, None].long()), columns.width
    ranks = (logprobs >= own).sum(-1) if ranked else None
    if columns.named is None:
        return Scores(own[:, 0], top_tokens[:, :width], top[:, :width], ranks)
    named = upload(columns.named[block], logits.device)
    likeliest = pad(top_tokens, (0, max(0, width - top_tokens.shape[1])))[:, :width]
    tokens = torch.where(named == LIKELIEST, likeliest, named)
    return Scores(own[:, 0], tokens, logprobs.gather(1, tokens), ranks)
