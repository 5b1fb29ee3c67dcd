"""Layers of experts: which experts a token uses, their MLPs over all tokens at once, and the sum of what they say.

    route       each row's experts and their shares
    count       (row, expert) pairs of each expert
    place       the pairs, expert after expert, in the order of their rows
    grouped     program (block of pairs of one expert, tile of columns)
    add_up      each row's experts, the highest score first

The host is told nothing: there are programs for as many blocks as there could be, and those without one leave at once.
Which rows share a block with a row changes none of its bits, nor does its place there.

Limits: with few tokens the weights of the experts they chose are read once, bandwidth; with many, arithmetic.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pawl.gpu.kernels.activation import gated
from pawl.gpu.kernels.machine import padded
from pawl.gpu.kernels.matmul import COLUMN_BLOCK, FEW_ROWS, product_in_order, tiling
from pawl.gpu.models.config import Activation

PAIR_BLOCK = FEW_ROWS
"""Pairs of one expert that a program multiplies."""
SCAN_BLOCK = 1024


@triton.jit
def route_kernel(
    scores, positions, experts, shares, num_experts: tl.constexpr, num_chosen: tl.constexpr,
    has_positions: tl.constexpr, normalised: tl.constexpr, block: tl.constexpr, chosen_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    numbers, ranks = tl.arange(0, block), tl.arange(0, chosen_block)
    score = tl.load(scores + row * num_experts + numbers, mask=numbers < num_experts, other=float("-inf")).to(
        tl.float32
    )
    weights = tl.exp(score - tl.max(score))
    share = weights / tl.sum(weights)
    # What is no number is the least of all, so that every row has experts, each once; its shares are no numbers either.
    left = tl.where(score == score, score, float("-inf"))
    taken = numbers >= num_experts
    chosen = tl.zeros((chosen_block,), tl.int32)
    own_shares = tl.zeros((chosen_block,), tl.float32)
    for rank in tl.static_range(num_chosen):
        highest = tl.max(tl.where(taken, float("-inf"), left))
        best = tl.min(tl.where((left == highest) & ~taken, numbers, block))
        taken = taken | (numbers == best)
        chosen = tl.where(ranks == rank, best, chosen)
        own_shares = tl.where(ranks == rank, tl.sum(tl.where(numbers == best, share, 0.0)), own_shares)
    if normalised:
        own_shares = own_shares / tl.sum(own_shares)
    if has_positions:
        # A row of padding would have weights read for it.
        chosen = tl.where(tl.load(positions + row) < 0, -1, chosen)
    at = row * num_chosen + ranks
    tl.store(experts + at, chosen, mask=ranks < num_chosen)
    tl.store(shares + at, own_shares, mask=ranks < num_chosen)


@triton.jit(do_not_specialize=["num_pairs"])
def count_kernel(experts, counts, num_pairs, block: tl.constexpr):
    expert = tl.program_id(0)
    found = tl.zeros((block,), tl.int32)
    for begin in range(0, num_pairs, block):
        pairs = begin + tl.arange(0, block)
        found += (tl.load(experts + pairs, mask=pairs < num_pairs, other=-1) == expert).to(tl.int32)
    tl.store(counts + expert, tl.sum(found))


@triton.jit(do_not_specialize=["num_pairs"])
def place_kernel(experts, counts, placed, num_pairs, expert_block: tl.constexpr, block: tl.constexpr):
    expert = tl.program_id(0)
    lower = tl.arange(0, expert_block)
    first = tl.sum(tl.load(counts + lower, mask=lower < expert, other=0))
    for begin in range(0, num_pairs, block):
        pairs = begin + tl.arange(0, block)
        own = tl.load(experts + pairs, mask=pairs < num_pairs, other=-1) == expert
        rank = tl.cumsum(own.to(tl.int32), 0)
        tl.store(placed + first + rank - 1, pairs, mask=own)
        first += tl.sum(own.to(tl.int32))


@triton.jit
def grouped_kernel(
    rows, weights, counts, placed, output, row_stride,
    num_experts: tl.constexpr, pairs_of_row: tl.constexpr, num_columns: tl.constexpr, inner_size: tl.constexpr,
    expert_block: tl.constexpr, row_block: tl.constexpr, chunk: tl.constexpr, column_block: tl.constexpr,
    inner_block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0)
    numbers = tl.arange(0, expert_block)
    count = tl.load(counts + numbers, mask=numbers < num_experts, other=0)
    blocks = tl.cdiv(count, row_block)
    until = tl.cumsum(blocks, 0)
    expert = tl.sum((until <= index).to(tl.int32))
    if expert >= num_experts:
        return
    own = numbers == expert
    within = (index - tl.sum(tl.where(own, until - blocks, 0))) * row_block + tl.arange(0, row_block)
    there = within < tl.sum(tl.where(own, count, 0))
    first = tl.sum(tl.where(numbers < expert, count, 0))
    pairs = tl.load(placed + first + within, mask=there, other=0).to(tl.int64)
    columns = tl.program_id(1) * column_block + tl.arange(0, column_block)
    column_there = columns < num_columns
    weight_at = (expert.to(tl.int64) * num_columns + columns) * inner_size
    total = product_in_order(
        rows, pairs // pairs_of_row * row_stride, there, weights, weight_at, column_there,
        inner_size, chunk, row_block, column_block, inner_block, wide,
    )  # fmt: skip
    at = pairs[:, None] * num_columns + columns[None]
    tl.store(output + at, total.to(output.dtype.element_ty), mask=there[:, None] & column_there[None])


@triton.jit
def add_up_kernel(said, experts, shares, output, num_columns, num_chosen: tl.constexpr, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < num_columns
    total = tl.zeros((block,), tl.float32)
    for rank in tl.static_range(num_chosen):
        pair = row * num_chosen + rank
        if tl.load(experts + pair) >= 0:
            own = tl.load(said + pair * num_columns + columns, mask=inside, other=0.0).to(tl.float32)
            total += own * tl.load(shares + pair)
    tl.store(output + row * num_columns + columns, total.to(output.dtype.element_ty), mask=inside)


def route(
    scores: Tensor, num_chosen: int, normalise: bool, *, positions: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Experts int32 [t, chosen] of largest score, of equal ones the lower number first, and shares float32 [t, chosen].

    scores [t, experts] of any float dtype, contiguous. Shares are the softmax of all, divided by the sum of those
    chosen where `normalise` says so. Rows with a negative one of `positions` int32 [t] are padding: their experts are
    all -1.
    """
    num_rows, num_experts = scores.shape
    experts = torch.empty((num_rows, num_chosen), dtype=torch.int32, device=scores.device)
    shares = torch.empty((num_rows, num_chosen), dtype=torch.float32, device=scores.device)
    if num_rows:
        route_kernel[(num_rows,)](
            scores, experts if positions is None else positions, experts, shares, num_experts=num_experts,
            num_chosen=num_chosen, has_positions=positions is not None, normalised=normalise,
            block=padded(num_experts), chosen_block=padded(num_chosen), num_warps=1,
        )  # fmt: skip
    return experts, shares


def group(experts: Tensor, num_experts: int) -> tuple[Tensor, Tensor]:
    """The pairs of experts int32 [t, chosen], -1 for none, by expert: counts int32 [num_experts], and the pairs (row *
    chosen + rank) of expert 0, then of 1, ..., each rising: int32 [t * chosen], anything beyond the sum of counts."""
    num_pairs = experts.numel()
    counts = torch.empty(num_experts, dtype=torch.int32, device=experts.device)
    placed = torch.empty(num_pairs, dtype=torch.int32, device=experts.device)
    count_kernel[(num_experts,)](experts, counts, num_pairs, block=SCAN_BLOCK)
    place_kernel[(num_experts,)](experts, counts, placed, num_pairs, expert_block=padded(num_experts), block=SCAN_BLOCK)
    return counts, placed


def grouped(rows: Tensor, weights: Tensor, counts: Tensor, placed: Tensor) -> Tensor:
    """Each pair's row times the matrix of its expert, [pairs, n] of the rows' dtype; pairs of no expert are left as
    they are.

    rows [t, k] or [pairs, k] contiguous; weights [experts, n, k] contiguous; counts and placed from `group`.
    """
    num_pairs, (num_experts, num_columns, inner_size) = len(placed), weights.shape
    output = torch.empty((num_pairs, num_columns), dtype=rows.dtype, device=rows.device)
    # Every expert may have a block that is not full.
    num_blocks = num_pairs // PAIR_BLOCK + min(num_experts, num_pairs)
    grouped_kernel[(num_blocks, triton.cdiv(num_columns, COLUMN_BLOCK))](
        rows, weights, counts, placed, output, rows.stride(0), num_experts=num_experts,
        pairs_of_row=num_pairs // len(rows), num_columns=num_columns, inner_size=inner_size,
        expert_block=padded(num_experts), **tiling(PAIR_BLOCK, rows.dtype),
    )  # fmt: skip
    return output


def experts_forward(
    hidden: Tensor, gate_up: Tensor, down: Tensor, experts: Tensor, shares: Tensor, activation: Activation
) -> Tensor:
    """The sum of what each row's experts say by their shares, [t, c] as hidden; 0 for a row without experts.

    hidden [t, c], gate_up [experts, 2 * inner, c], down [experts, c, inner], contiguous, of one dtype; experts and
    shares [t, chosen] from `route`.
    """
    output = torch.empty_like(hidden)
    if not len(hidden):
        return output
    num_chosen, num_columns = experts.shape[1], hidden.shape[1]
    counts, placed = group(experts, len(gate_up))
    inner = gated(grouped(hidden, gate_up, counts, placed), activation)
    said = grouped(inner, down, counts, placed)
    add_up_kernel[(len(hidden), triton.cdiv(num_columns, SCAN_BLOCK))](
        said, experts, shares, output, num_columns, num_chosen=num_chosen, block=SCAN_BLOCK
    )
    return output
