"""Drawing one token from each row of logits: temperature, top-k, top-p, min-p, and noise.

The order is temperature, then top-k, then top-p over what top-k left (renormalised), then min-p relative to the
likeliest token. How a row is computed depends on that row alone: a row that needs sorting looks at its likeliest 64,
1,024 or all tokens, according to its own parameters and its own logits. So its draw never depends on its batch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gpu.devices import upload
from gpu.noise import all_tokens, gumbel
from lifecycle.step import Float32s, Int32s

NARROW = 64
WIDE = 1024


@dataclass(frozen=True, eq=False)
class DrawParameters:
    """Parameters of n rows, on the host."""

    temperature: Float32s
    """> 0."""
    top_k: Int32s
    """0: off."""
    top_p: Float32s
    min_p: Float32s
    keys: Int32s
    """[n, 2] of `gpu.noise.row_keys`."""

    def of(self, rows: NDArray[np.intp]) -> DrawParameters:
        """Those of some rows."""
        return DrawParameters(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw(logits: Tensor, parameters: DrawParameters) -> Tensor:
    """One token for each row, int64 [n], from logits float32 [n, vocab]. At least the likeliest token is kept."""
    device, vocab_size = logits.device, logits.shape[1]
    # Subtracting the maximum first keeps tiny temperatures from overflowing.
    temperature = upload(parameters.temperature, device)[:, None]
    scaled = (logits - logits.amax(-1, keepdim=True)).div_(temperature)
    narrow = (parameters.top_k > 0) & (parameters.top_k <= NARROW)
    whole = (parameters.top_k == 0) & (parameters.top_p >= 1.0)
    tokens = torch.empty(len(logits), dtype=torch.int64, device=device)
    for chosen, width in ((narrow, NARROW), (~narrow & ~whole, WIDE)):
        if chosen.any():
            rows = np.flatnonzero(chosen)
            part = scaled if len(rows) == len(scaled) else scaled[upload(rows, device)]
            tokens[upload(rows, device)] = _draw_sorted(part, parameters.of(rows), min(width, vocab_size))
    if whole.any():
        rows = np.flatnonzero(whole)
        part = scaled if len(rows) == len(scaled) else scaled[upload(rows, device)]
        tokens[upload(rows, device)] = _draw_whole(part, parameters.of(rows))
    return tokens


def _draw_whole(scaled: Tensor, parameters: DrawParameters) -> Tensor:
    """Rows without top-k and top-p: no sorting. `scaled` has maximum 0."""
    keys = upload(parameters.keys, scaled.device)
    perturbed = gumbel(keys, all_tokens(scaled.shape[1], scaled.device)).add_(scaled)
    if (parameters.min_p > 0).any():
        least = upload(parameters.min_p, scaled.device)[:, None].log()
        perturbed.masked_fill_(scaled < least, float("-inf"))
    return perturbed.argmax(-1)


def _draw_sorted(scaled: Tensor, parameters: DrawParameters, width: int) -> Tensor:
    """Rows that keep a prefix of their tokens by likelihood; `width` is how many are sorted at first."""
    device, vocab_size = scaled.device, scaled.shape[1]
    top_k = np.where(parameters.top_k > 0, parameters.top_k, vocab_size)
    values, tokens = scaled.topk(width)
    limit = upload(top_k.astype(np.int64), device)[:, None]
    within = torch.arange(width, device=device)[None] < limit
    inside = values.masked_fill(~within, float("-inf"))
    # Without top-k the tail beyond `width` belongs to the total.
    unlimited = upload(parameters.top_k == 0, device)[:, None]
    total = torch.where(unlimited, scaled.logsumexp(-1, keepdim=True), inside.logsumexp(-1, keepdim=True))
    probabilities = (inside - total).exp()
    reached = probabilities.cumsum(-1)
    top_p, min_p = (upload(array, device)[:, None] for array in (parameters.top_p, parameters.min_p))
    keep = within & (reached - probabilities < top_p) & (probabilities >= min_p * probabilities[:, :1])
    keep[:, 0] = True
    noise = gumbel(upload(parameters.keys, device), tokens.int())
    winners = (values + noise).masked_fill_(~keep, float("-inf")).argmax(-1, keepdim=True)
    drawn = tokens.gather(1, winners)[:, 0]
    if width < vocab_size:
        # Cut off by `width` rather than by the row's own parameters: sort that row whole.
        short = (keep[:, -1:] & (reached[:, -1:] < top_p) & (limit > width))[:, 0].cpu().numpy()
        if short.any():
            rows = np.flatnonzero(short)
            drawn[upload(rows, device)] = _draw_sorted(scaled[upload(rows, device)], parameters.of(rows), vocab_size)
    return drawn
