"""Attention of one new token of each request over its pages: the keys are shared out, then put together in order.

    split       program (row, key head, split): the group of query heads over one stretch of keys
    combine     program (row, head): the stretches of a row, oldest first

How many keys a stretch has depends on how many the row itself sees, on nothing else: not on other rows, and not on the
size of the grid, whose programs without a stretch leave at once.

Limits: bandwidth. A layer reads 2 * keys * kv_heads * head_dim elements once, and its partial results are 2 * group /
stretch of that in float32 (3 % for a group of 4).
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pawl.gpu.kernels.machine import interpreted, padded
from pawl.gpu.kernels.pages import LEAST_DOT, LOG2_E, entries_at, score_keys, see

STRETCH = 256
"""Keys of a stretch of a row that sees few; a multiple of KEY_TILE."""
MOST_STRETCHES = 64
"""Where a row sees more keys than this many stretches hold, its stretches are longer."""
KEY_TILE = 64


@triton.jit
def stretches_of(position, window: tl.constexpr, stretch: tl.constexpr, most: tl.constexpr, tile: tl.constexpr):
    """Of a query at `position`: the first key it sees, where its first stretch begins, the length of a stretch, and
    how many there are."""
    first = position * 0 if window is None else tl.maximum(position + 1 - window, 0)
    begin = first // tile * tile
    length = tl.cdiv(position + 1 - begin, stretch * most) * stretch
    return first, begin, length, tl.cdiv(position + 1 - begin, length)


@triton.jit
def split_kernel(
    query, keys, values, page_table, slots, positions, partial, summary, scale, soft_cap, query_stride, table_stride,
    num_heads: tl.constexpr, num_kv_heads: tl.constexpr, head_dim: tl.constexpr, page_size: tl.constexpr,
    window: tl.constexpr, capped: tl.constexpr, wide: tl.constexpr, stretch: tl.constexpr, most: tl.constexpr,
    tile: tl.constexpr, row_block: tl.constexpr, dim_block: tl.constexpr,
):  # fmt: skip
    row, kv_head, index = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions + row)
    slot = tl.load(slots + row)
    if (position < 0) | (slot < 0):
        return
    first, begin, length, count = stretches_of(position, window, stretch, most, tile)
    if index >= count:
        return
    group: tl.constexpr = num_heads // num_kv_heads
    members, dims = tl.arange(0, row_block), tl.arange(0, dim_block)
    heads = kv_head * group + members
    own = (members < group)[:, None] & (dims < head_dim)[None]
    own_query = tl.load(query + row * query_stride + heads[:, None] * head_dim + dims[None], mask=own, other=0.0)
    highest = tl.full((row_block,), float("-inf"), tl.float32)
    total = tl.zeros((row_block,), tl.float32)
    seen = tl.zeros((row_block, dim_block), tl.float32)
    table = page_table + slot.to(tl.int64) * table_stride
    from_key = begin + index * length
    until_key = tl.minimum(from_key + length, position + 1)
    for tile_begin in range(from_key, until_key, tile):
        key_positions = tile_begin + tl.arange(0, tile)
        entries = entries_at(table, key_positions, until_key, page_size, tile) * num_kv_heads + kv_head
        visible = (key_positions >= first) & (key_positions < until_key)
        there = visible[:, None] & (dims < head_dim)[None]
        at = entries[:, None] * head_dim + dims[None]
        own_keys = tl.load(keys + at, mask=there, other=0.0)
        scores = score_keys(own_query, tl.trans(own_keys), scale, soft_cap, capped, wide)
        scores = tl.where(visible[None], scores, float("-inf"))
        own_values = tl.load(values + at, mask=there, other=0.0)
        highest, total, seen = see(scores, own_values, highest, total, seen, wide)
    part = (row * tl.num_programs(2) + index) * num_heads + heads
    tl.store(partial + part[:, None] * head_dim + dims[None], seen, mask=own)
    tl.store(summary + part * 2, highest, mask=members < group)
    tl.store(summary + part * 2 + 1, total, mask=members < group)


@triton.jit(do_not_specialize=["num_splits"])
def combine_kernel(
    partial, summary, slots, positions, output, num_splits,
    num_heads: tl.constexpr, head_dim: tl.constexpr, window: tl.constexpr, stretch: tl.constexpr, most: tl.constexpr,
    tile: tl.constexpr, dim_block: tl.constexpr,
):  # fmt: skip
    row, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dims = tl.arange(0, dim_block)
    inside = dims < head_dim
    at = output + (row * num_heads + head) * head_dim + dims
    position = tl.load(positions + row)
    if (position < 0) | (tl.load(slots + row) < 0):
        tl.store(at, tl.zeros((dim_block,), output.dtype.element_ty), mask=inside)
        return
    _, _, _, count = stretches_of(position, window, stretch, most, tile)
    base = row * num_splits * num_heads + head
    highest = tl.load(summary + base * 2)
    for index in range(1, count):
        highest = tl.maximum(highest, tl.load(summary + (base + index * num_heads) * 2))
    total = 0.0
    seen = tl.zeros((dim_block,), tl.float32)
    for index in range(count):
        part = base + index * num_heads
        kept = tl.exp2(tl.load(summary + part * 2) - highest)
        total += tl.load(summary + part * 2 + 1) * kept
        seen += tl.load(partial + part * head_dim + dims, mask=inside, other=0.0) * kept
    tl.store(at, (seen / total).to(output.dtype.element_ty), mask=inside)


def splits_for(max_tokens: int) -> int:
    """Stretches that a row which sees `max_tokens` keys can have: what `num_splits` must be at least."""
    return min(MOST_STRETCHES, -(-max(max_tokens, 1) // STRETCH))


def attend_decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    slots: Tensor,
    positions: Tensor,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
    num_splits: int,
) -> Tensor:
    """Each row's query over the keys at its position and before: [s, heads * head_dim], of query's dtype.

    query [s, heads, head_dim], rows may be strided; keys, values [pages, page_size, kv_heads, head_dim] contiguous, the
    row's own entry written; page_table int32 [num_slots, max_pages]; slots, positions int32 [s], a row with a negative
    one is padding and gives 0. A row sees min(position + 1, window) keys; `soft_cap` bounds scores by cap * tanh(score
    / cap). `num_splits`, at least `splits_for(position + 1)` for every row, changes no bit.
    """
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads = keys.shape[2]
    output = torch.empty((num_rows, num_heads * head_dim), dtype=query.dtype, device=query.device)
    if not num_rows:
        return output
    if window is not None:
        # The first stretch may begin a tile before the window does.
        num_splits = min(num_splits, splits_for(window + KEY_TILE))
    partial = torch.empty((num_rows, num_splits, num_heads, head_dim), dtype=torch.float32, device=query.device)
    summary = torch.empty((num_rows, num_splits, num_heads, 2), dtype=torch.float32, device=query.device)
    dim_block = padded(head_dim, LEAST_DOT)
    shape = {"stretch": STRETCH, "most": MOST_STRETCHES, "tile": KEY_TILE, "dim_block": dim_block}
    split_kernel[(num_rows, num_kv_heads, num_splits)](
        query, keys, values, page_table, slots, positions, partial, summary,
        scale if soft_cap else scale * LOG2_E, soft_cap or 0.0, query.stride(0), page_table.stride(0),
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=keys.shape[1],
        window=window, capped=bool(soft_cap), wide=interpreted(),
        row_block=padded(num_heads // num_kv_heads, LEAST_DOT), num_warps=4,
        num_stages=5 if dim_block <= 128 else 3, **shape,
    )  # fmt: skip
    combine_kernel[(num_rows, num_heads)](
        partial, summary, slots, positions, output, num_splits,
        num_heads=num_heads, head_dim=head_dim, window=window, num_warps=1, **shape,
    )  # fmt: skip
    return output
