"""What adapters add to a product: rows of many adapters at once, each through the two matrices of its own.

    shrink   program (block of rows of one adapter, tile of its rank)       shrunk = rows shrink^T
    expand   program (block of rows of one adapter, tile of outputs)        output += shrunk expand^T

Matrices of different adapters lie anywhere and have different ranks: a table holds their addresses. Blocks have one
height, so which rows share one with a row, and how many, changes none of its bits (Punica, Chen et al. 2024, S-LoRA,
Sheng et al. 2024, for the grouping).

Limits: the matrices are read once for each block of rows, bandwidth.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from pawl.gpu.kernels.matmul import COLUMN_BLOCK, FEW_ROWS, INNER_BLOCK, product, product_in_order, tiling

RANK_TILE = 64
ENTRY = 3
"""Numbers of one product in the table: address of `shrink`, address of `expand`, rank."""


def rank_step(dtype: torch.dtype) -> int:
    """Ranks are multiples of this; matrices are filled up with zeros."""
    return INNER_BLOCK[dtype.itemsize]


class Blocks(NamedTuple):
    """Rows by adapter, all int32 on the device."""

    order: Tensor
    """[n], rows that have adapters, those of one adapter side by side."""
    blocks: Tensor
    """[blocks, 3]: number of an adapter, place of its first row in `order`, number of rows, at most FEW_ROWS."""


@triton.jit(do_not_specialize=["at"])
def shrink_kernel(
    rows, table, order, blocks, shrunk, at, row_stride, table_stride, width,
    inner_size: tl.constexpr, chunk: tl.constexpr, row_block: tl.constexpr, column_block: tl.constexpr,
    inner_block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    block = blocks + tl.program_id(0) * 3
    entry = table + tl.load(block) * table_stride + at
    rank = tl.load(entry + 2).to(tl.int32)
    columns = tl.program_id(1) * column_block + tl.arange(0, column_block)
    if tl.program_id(1) * column_block >= rank:
        return
    within = tl.arange(0, row_block)
    there = within < tl.load(block + 2)
    places = (tl.load(block + 1) + within).to(tl.int64)
    own = tl.load(order + places, mask=there, other=0).to(tl.int64)
    total = product_in_order(
        rows, own * row_stride, there, tl.load(entry).to(rows.dtype), columns.to(tl.int64) * inner_size,
        columns < rank, inner_size, chunk, row_block, column_block, inner_block, wide,
    )  # fmt: skip
    to = shrunk + places[:, None] * width + columns[None]
    tl.store(to, total.to(shrunk.dtype.element_ty), mask=there[:, None] & (columns < rank)[None])


@triton.jit(do_not_specialize=["at"])
def expand_kernel(
    shrunk, table, order, blocks, output, at, table_stride, width,
    num_columns: tl.constexpr, row_block: tl.constexpr, column_block: tl.constexpr, inner_block: tl.constexpr,
    wide: tl.constexpr,
):  # fmt: skip
    block = blocks + tl.program_id(0) * 3
    entry = table + tl.load(block) * table_stride + at
    rank = tl.load(entry + 2).to(tl.int32)
    if rank == 0:
        return
    columns = tl.program_id(1) * column_block + tl.arange(0, column_block)
    within = tl.arange(0, row_block)
    there = within < tl.load(block + 2)
    places = (tl.load(block + 1) + within).to(tl.int64)
    own = tl.load(order + places, mask=there, other=0).to(tl.int64)
    # The rank is a multiple of `inner_block`: nothing is beyond it.
    total = product(
        shrunk, places * width, there, tl.load(entry + 1).to(shrunk.dtype), columns.to(tl.int64) * rank,
        columns < num_columns, 0, rank, inner_block, row_block, column_block, inner_block, wide,
    )  # fmt: skip
    to = output + own[:, None] * num_columns + columns[None]
    mask = there[:, None] & (columns < num_columns)[None]
    total += tl.load(to, mask=mask, other=0.0).to(tl.float32)
    tl.store(to, total.to(output.dtype.element_ty), mask=mask)


def add_low_rank(rows: Tensor, output: Tensor, blocks: Blocks, table: Tensor, entry: int, widest: int) -> None:
    """Add to `output` [t, n] in place, for each row that has an adapter, what the adapter makes of its one of `rows`
    [t, k]; both of one dtype, `output` contiguous, `rows` contiguous but between rows.

    table int64 [adapters, products, ENTRY]: what each adapter has for each product of the model, of which this is
    number `entry`; matrices shrink [rank, k] and expand [n, rank] of that dtype, contiguous; rank 0 for nothing, else a
    multiple of `rank_step`, and at most `widest`.
    """
    num_blocks, (_, inner_size), num_columns = len(blocks.blocks), rows.shape, output.shape[1]
    cut = tiling(FEW_ROWS, rows.dtype)
    shrunk = torch.empty((len(blocks.order), widest), dtype=rows.dtype, device=rows.device)
    own = (table, blocks.order, blocks.blocks)
    shrink_kernel[(num_blocks, triton.cdiv(widest, RANK_TILE))](
        rows, *own, shrunk, entry * ENTRY, rows.stride(0), table.stride(0), widest, inner_size=inner_size,
        **{**cut, "column_block": RANK_TILE},
    )  # fmt: skip
    del cut["chunk"]
    expand_kernel[(num_blocks, triton.cdiv(num_columns, COLUMN_BLOCK))](
        shrunk, *own, output, entry * ENTRY, table.stride(0), widest, num_columns=num_columns, **cut
    )
