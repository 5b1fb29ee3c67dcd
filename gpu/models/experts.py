"""Layers of experts in plain torch: which experts a token uses, and the sum of what they say.

Tokens are grouped by expert, so that each expert that somebody chose computes once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from pawl.gpu.models.config import Experts


@dataclass(frozen=True, slots=True)
class Routes:
    """The experts of each row of a batch."""

    experts: Tensor
    """int64 [n, chosen], highest score first, each expert at most once in a row."""
    shares: Tensor
    """float32 [n, chosen]"""
    count: int
    """Experts there are."""


def route(scores: Tensor, experts: Experts) -> Routes:
    """Choose from the router's scores [n, experts]: the largest, and of equal ones the expert of lower number."""
    scores = scores.float()
    # Not topk: which of equal scores it takes is not said, and differs with the number of rows.
    chosen = scores.sort(dim=-1, descending=True, stable=True).indices[:, : experts.chosen]
    shares = scores.softmax(-1).gather(1, chosen)
    if experts.normalised:
        shares = shares / shares.sum(-1, keepdim=True)
    return Routes(chosen, shares, experts.count)


def mix(
    routes: Routes,
    rows: Tensor,
    held: Sequence[int],
    mlp: Callable[[Tensor, int], Tensor],
    copies: Sequence[tuple[int, int]] = (),
) -> Tensor:
    """Each row's experts, summed by their shares: [n, hidden] -> [n, hidden]. Only those that are `held`, rising, are
    computed, by `mlp(rows of one, its number among these)`; the others count as zeros. `copies` says of each of these
    the how-manieth of how many ranks computes it here, that many parts of its rows; empty: nobody else does.

    Sums run over a row's own experts in their own order, in float32. Waits for the device, to learn how many rows
    each expert has.
    """
    num_rows, num_chosen = routes.experts.shape
    flat = routes.experts.reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=routes.count).tolist()
    said = torch.zeros((len(flat), rows.shape[1]), dtype=torch.float32, device=rows.device)
    begins = list(accumulate(counts, initial=0))
    for number, expert in enumerate(held):
        if counts[expert]:
            copy, count = copies[number] if copies else (0, 1)
            begin, rows_of_one = begins[expert], counts[expert]
            pairs = order[begin + rows_of_one * copy // count : begin + rows_of_one * (copy + 1) // count]
            said[pairs] = mlp(rows[pairs // num_chosen], number).float()
    return torch.einsum("nkh,nk->nh", said.view(num_rows, num_chosen, rows.shape[1]), routes.shares).to(rows.dtype)
