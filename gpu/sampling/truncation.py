"""Drawing one token from each row of logits: temperature, top-k, top-p, min-p, and noise.

The order is temperature, then top-k, then top-p over what top-k left (renormalised), then min-p relative to the
likeliest token. How a row is computed depends on that row alone: a row that needs sorting looks at its likeliest 64,
1,024 or all tokens, according to its own parameters and its own logits, and no sum over a row is taken by a kernel
that adds in another order when the batch is larger. So its draw never depends on its batch.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from pawl.gpu.devices import upload
from pawl.gpu.sampling.noise import all_tokens, gumbel
from pawl.gpu.sampling.parameters import WIDE, DrawParameters

NARROW = 64


def draw(logits: Tensor, parameters: DrawParameters) -> Tensor:
    """One token for each row, int64 [n], from logits float32 [n, vocab], which are changed in place.

    At least the likeliest token is kept.
    """
    device, vocab_size = logits.device, logits.shape[1]
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    scaled = logits.sub_(logits.amax(-1, keepdim=True)).div_(upload(parameters.temperature, device)[:, None])
    tokens = torch.empty(len(logits), dtype=torch.int64, device=device)
    limited = parameters.top_k > 0
    nucleus = ~limited & (parameters.top_p < 1.0)
    for chosen, way in (
        (limited & (parameters.top_k <= NARROW), partial(_draw_limited, width=NARROW)),
        (limited & (parameters.top_k > NARROW) & (parameters.top_k <= WIDE), partial(_draw_limited, width=WIDE)),
        (limited & (parameters.top_k > WIDE), partial(_draw_limited, width=vocab_size)),
        (nucleus, _draw_nucleus),
        (~limited & ~nucleus, _draw_whole),
    ):
        if chosen.all():
            return way(scaled, parameters)
        if chosen.any():
            rows = np.flatnonzero(chosen)
            device_rows = upload(rows, device)
            tokens[device_rows] = way(scaled[device_rows], parameters.of(rows))
    return tokens


def _draw_whole(scaled: Tensor, parameters: DrawParameters) -> Tensor:
    """Rows without top-k and top-p: no sorting. `scaled` has maximum 0."""
    keys = upload(parameters.keys, scaled.device)
    perturbed = gumbel(keys, all_tokens(scaled.shape[1], scaled.device)).add_(scaled)
    if (parameters.min_p > 0).any():
        least = upload(parameters.min_p, scaled.device)[:, None].log()
        perturbed.masked_fill_(scaled < least, float("-inf"))
    return perturbed.argmax(-1)


def _draw_limited(scaled: Tensor, parameters: DrawParameters, width: int) -> Tensor:
    """Rows with 0 < top_k <= width."""
    values, tokens = scaled.topk(min(width, scaled.shape[1]))
    limit = upload(parameters.top_k, scaled.device)[:, None]
    values.masked_fill_(torch.arange(values.shape[1], device=scaled.device)[None] >= limit, float("-inf"))
    drawn, _ = _draw_sorted(values, values.softmax(-1), tokens, parameters)
    return drawn


def _draw_nucleus(scaled: Tensor, parameters: DrawParameters) -> Tensor:
    """Rows with top-p but without top-k: few tokens hold most of the mass, so only those are sorted at first."""
    # The softmax kernel adds up each row by itself; `logsumexp` may split a lone row over threads.
    scaled = scaled.log_softmax(-1)
    if scaled.device.type != "cpu":
        # Whether few tokens are enough is known on the device alone, and asking it would wait for all it has to do.
        values, tokens = scaled.sort(dim=-1, descending=True, stable=True)
        return _draw_sorted(values, values.exp(), tokens, parameters)[0]
    values, tokens = scaled.topk(min(WIDE, scaled.shape[1]))
    drawn, complete = _draw_sorted(values, values.exp(), tokens, parameters)
    if values.shape[1] < scaled.shape[1] and not complete.all():
        rows = (~complete).nonzero()[:, 0]
        values, tokens = scaled[rows].sort(dim=-1, descending=True, stable=True)
        drawn[rows], _ = _draw_sorted(values, values.exp(), tokens, parameters.of(rows.numpy()))
    return drawn


def _draw_sorted(
    values: Tensor, probabilities: Tensor, tokens: Tensor, parameters: DrawParameters
) -> tuple[Tensor, Tensor]:
    """Top-p, min-p and the draw over sorted candidates [n, k] with their (unnormalised) log-probabilities `values`.

    Returns the tokens int64 [n], and bool [n]: whether what is kept ends before the candidates do.
    """
    device = values.device
    reached = probabilities.cumsum(-1)
    top_p, min_p = (upload(array, device)[:, None] for array in (parameters.top_p, parameters.min_p))
    keep = (reached - probabilities < top_p) & (probabilities >= min_p * probabilities[:, :1])
    keep[:, 0] = True
    perturbed = gumbel(upload(parameters.keys, device), tokens.int()).add_(values).masked_fill_(~keep, float("-inf"))
    drawn = tokens.gather(1, perturbed.argmax(-1, keepdim=True))[:, 0]
    complete = ~keep[:, -1] | (reached[:, -1] >= top_p[:, 0])
    return drawn, complete
