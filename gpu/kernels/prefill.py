"""Attention of a flat batch of segments, prompts and single tokens mixed, over pages that already hold their keys.

    program (tile, key head)      tile: QUERY positions of one slot, a multiple of QUERY first, times their query heads

Tiles of queries and tiles of keys lie on absolute positions, and a tile of keys that a row does not see changes none of
its bits: so a row is the same however its prompt was cut and whatever is beside it. Keys are read in one order, as by
Dao (FlashAttention-2, 2023): tiles that all rows see whole need no mask.

Its bits are not those of `pawl.gpu.kernels.decode`, which shares a row's keys out. Where a row must not depend on
whether it was computed as part of a prompt or as a new token, all rows go this way.

Limits: arithmetic, 4 * queries * keys / 2 * heads * head_dim operations; the tile at the diagonal is half waste.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pawl.gpu.kernels.machine import interpreted, padded
from pawl.gpu.kernels.pages import LEAST_DOT, LOG2_E, entries_at, score_keys, see

KEY_TILE = 64


@triton.jit
def segment_of(index, offsets, num_segments, queries: tl.constexpr):
    """Which segment tile `index` belongs to, and which of its tiles that is. Segment i begins at tile
    offsets[i] // queries + 2 * i: it cannot have more than that leaves it, and the last has what comes after all."""
    low, high = index * 0, index * 0 + num_segments
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(offsets + middle) // queries + 2 * middle <= index:
            low = middle
        else:
            high = middle - 1
    return low, index - (tl.load(offsets + low) // queries + 2 * low)


@triton.jit
def see_range(
    from_key, until_key, query, query_positions, least_key, end_key, table, keys, values, kv_head, dims,
    highest, total, seen, scale, soft_cap,
    num_kv_heads: tl.constexpr, head_dim: tl.constexpr, page_size: tl.constexpr, window: tl.constexpr,
    capped: tl.constexpr, wide: tl.constexpr, tile: tl.constexpr, masked: tl.constexpr,
):  # fmt: skip
    """Tiles of keys from `from_key` on, to `until_key`. Not `masked`: every row sees all of them."""
    for tile_begin in range(from_key, until_key, tile):
        key_positions = tile_begin + tl.arange(0, tile)
        entries = entries_at(table, key_positions, end_key, page_size, tile) * num_kv_heads + kv_head
        at = entries[:, None] * head_dim + dims[None]
        there = (dims < head_dim)[None]
        if masked:
            there = there & ((key_positions >= least_key) & (key_positions < end_key))[:, None]
        own_keys = tl.load(keys + at, mask=there, other=0.0)
        scores = score_keys(query, tl.trans(own_keys), scale, soft_cap, capped, wide)
        if masked:
            visible = key_positions[None] <= query_positions[:, None]
            if window is not None:
                visible = visible & (key_positions[None] > query_positions[:, None] - window)
            scores = tl.where(visible, scores, float("-inf"))
        own_values = tl.load(values + at, mask=there, other=0.0)
        highest, total, seen = see(scores, own_values, highest, total, seen, wide)
    return highest, total, seen


@triton.jit(do_not_specialize=["num_segments", "num_rows"])
def segments_kernel(
    query, keys, values, page_table, slots, starts, offsets, output, scale, soft_cap, num_segments, num_rows,
    query_stride, table_stride,
    num_heads: tl.constexpr, num_kv_heads: tl.constexpr, head_dim: tl.constexpr, page_size: tl.constexpr,
    window: tl.constexpr, capped: tl.constexpr, wide: tl.constexpr, tile: tl.constexpr, row_block: tl.constexpr,
    group_block: tl.constexpr, dim_block: tl.constexpr,
):  # fmt: skip
    queries: tl.constexpr = row_block // group_block
    group: tl.constexpr = num_heads // num_kv_heads
    # The last tiles of a prompt see most keys: they begin first.
    index, kv_head = tl.num_programs(0) - 1 - tl.program_id(0), tl.program_id(1)
    segment, number = segment_of(index, offsets, num_segments, queries)
    real = segment < num_segments
    first_row = tl.load(offsets + segment)
    length = tl.load(offsets + segment + 1, mask=real, other=num_rows) - first_row
    slot = tl.load(slots + segment, mask=real, other=-1)
    start = tl.load(starts + segment, mask=real & (slot >= 0), other=0)
    tile_first = (start // queries + number) * queries
    if tile_first >= start + length:
        return
    rows, dims = tl.arange(0, row_block), tl.arange(0, dim_block)
    query_positions, member = tile_first + rows // group_block, rows % group_block
    mine = (query_positions >= start) & (query_positions < start + length) & (member < group)
    own = mine[:, None] & (dims < head_dim)[None]
    batch_rows = (first_row + query_positions - start).to(tl.int64)
    inner = (kv_head * group + member)[:, None] * head_dim + dims[None]
    to = output + batch_rows[:, None] * num_heads * head_dim + inner
    if slot < 0:
        tl.store(to, tl.zeros((row_block, dim_block), output.dtype.element_ty), mask=own)
        return
    own_query = tl.load(query + batch_rows[:, None] * query_stride + inner, mask=own, other=0.0)
    highest = tl.full((row_block,), float("-inf"), tl.float32)
    total = tl.zeros((row_block,), tl.float32)
    seen = tl.zeros((row_block, dim_block), tl.float32)
    table = page_table + slot.to(tl.int64) * table_stride
    end_key = tl.minimum(tile_first + queries, start + length)
    least_key = start * 0
    whole_from = start * 0
    if window is not None:
        least_key = tl.maximum(tl.maximum(tile_first, start) + 1 - window, 0)
        # Every row of the tile sees the tiles of keys from here to the diagonal whole.
        whole_from = tl.cdiv(tl.maximum(tile_first + queries - window, 0), tile) * tile
        highest, total, seen = see_range(
            least_key // tile * tile, tl.minimum(whole_from, end_key), own_query, query_positions, least_key, end_key,
            table, keys, values, kv_head, dims, highest, total, seen, scale, soft_cap,
            num_kv_heads, head_dim, page_size, window, capped, wide, tile, True,
        )  # fmt: skip
    whole_until = tl.maximum((tile_first + 1) // tile * tile, whole_from)
    highest, total, seen = see_range(
        whole_from, whole_until, own_query, query_positions, least_key, end_key,
        table, keys, values, kv_head, dims, highest, total, seen, scale, soft_cap,
        num_kv_heads, head_dim, page_size, window, capped, wide, tile, False,
    )  # fmt: skip
    highest, total, seen = see_range(
        whole_until, end_key, own_query, query_positions, least_key, end_key,
        table, keys, values, kv_head, dims, highest, total, seen, scale, soft_cap,
        num_kv_heads, head_dim, page_size, window, capped, wide, tile, True,
    )  # fmt: skip
    tl.store(to, (seen / total[:, None]).to(output.dtype.element_ty), mask=own)


def attend_segments(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    page_table: Tensor,
    slots: Tensor,
    starts: Tensor,
    offsets: Tensor,
    *,
    scale: float,
    window: int | None,
    soft_cap: float | None,
) -> Tensor:
    """Each row's query over the keys at its position and before, in its own slot: [t, heads * head_dim], as query.

    query [t, heads, head_dim], rows may be strided; keys, values [pages, page_size, kv_heads, head_dim] contiguous, the
    rows' own entries written; page_table int32 [num_slots, max_pages]; rows offsets[i] .. offsets[i + 1] - 1 are tokens
    at starts[i] and on of slots[i], all int32. Segments with a negative slot are padding, and so are rows from
    offsets[s] on: they give 0. `window`, `soft_cap`: as in `attend_decode`.
    """
    num_rows, num_heads, head_dim = query.shape
    num_kv_heads, num_segments = keys.shape[2], len(slots)
    output = torch.empty((num_rows, num_heads * head_dim), dtype=query.dtype, device=query.device)
    if not num_rows:
        return output
    dim_block = padded(head_dim, LEAST_DOT)
    group_block = padded(num_heads // num_kv_heads)
    # What a program holds of its rows must fit the registers.
    row_block = max(group_block, 128 if dim_block * query.itemsize <= 256 else 64)
    num_tiles = num_rows // (row_block // group_block) + 2 * (num_segments + 1)
    segments_kernel[(num_tiles, num_kv_heads)](
        query, keys, values, page_table, slots, starts, offsets, output,
        scale if soft_cap else scale * LOG2_E, soft_cap or 0.0, num_segments, num_rows, query.stride(0),
        page_table.stride(0),
        num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, page_size=keys.shape[1], window=window,
        capped=bool(soft_cap), wide=interpreted(), tile=KEY_TILE, row_block=row_block, group_block=group_block,
        dim_block=dim_block, num_warps=8,
        num_stages=3 if dim_block <= 128 else 2,
    )  # fmt: skip
    return output
