"""Rows times a weight matrix, each output in one order of sums whatever the number of rows.

The inner extent is cut into pieces of CHUNK. A piece is summed from its beginning by one program; the sums of pieces
are added in order, from the first. Few rows have few tiles, so that programs would be idle: then each piece has a
program of its own and a second kernel adds them, in the same order. The instruction that multiplies is the same for
both heights of a tile (64 x 128 x 16 for bfloat16): one row has the same bits alone and among ten thousand.

Limits: with few rows the weights are read once, bandwidth; with many, arithmetic: 128 x 128 tiles.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from pawl.gpu.kernels.machine import interpreted, num_processors

CHUNK = 2048
"""Inner extent of a piece: a multiple of every INNER_BLOCK."""
INNER_BLOCK = {2: 64, 4: 32}
"""By bytes of an element: what a program has in shared memory at a time must fit."""
FEW_ROWS = 64
COLUMN_BLOCK = 128
MANY_ROWS = 128
NEIGHBOURS = 8
"""Tiles of rows that are computed together for each tile of columns: the weights they share stay in the cache."""


@triton.jit
def product(
    rows, row_at, row_there, weights, weight_at, weight_there, begin, until, inner_size: tl.constexpr,
    row_block: tl.constexpr, column_block: tl.constexpr, inner_block: tl.constexpr,
    wide: tl.constexpr,
):  # fmt: skip
    """float32 [row_block, column_block]: the rows at row_at [row_block] of `rows` times those at weight_at
    [column_block] of `weights`, over inner indices from `begin` to before `until`."""
    total = tl.zeros((row_block, column_block), tl.float32)
    for step in range(begin, until, inner_block):
        inner = step + tl.arange(0, inner_block)
        own_there, weight_own = row_there[:, None], weight_there[:, None]
        if inner_size % inner_block != 0:
            inside = (inner < inner_size)[None]
            own_there, weight_own = own_there & inside, weight_own & inside
        own = tl.load(rows + row_at[:, None] + inner[None], mask=own_there, other=0.0)
        weight = tl.load(weights + weight_at[:, None] + inner[None], mask=weight_own, other=0.0)
        if wide:
            own, weight = own.to(tl.float32), weight.to(tl.float32)
        total = tl.dot(own, tl.trans(weight), total, input_precision="ieee")
    return total


@triton.jit
def product_in_order(
    rows, row_at, row_there, weights, weight_at, weight_there,
    inner_size: tl.constexpr, chunk: tl.constexpr, row_block: tl.constexpr, column_block: tl.constexpr,
    inner_block: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    """As `product`, over the whole inner extent: piece after piece."""
    total = tl.zeros((row_block, column_block), tl.float32)
    for begin in range(0, inner_size, chunk):
        total += product(
            rows, row_at, row_there, weights, weight_at, weight_there, begin, tl.minimum(begin + chunk, inner_size),
            inner_size, row_block, column_block, inner_block, wide,
        )  # fmt: skip
    return total


@triton.jit
def tile_of(index, num_row_tiles, num_column_tiles, neighbours: tl.constexpr):
    """Which tile of rows and which of columns program `index` computes: `neighbours` tiles of rows side by side."""
    band = index // (neighbours * num_column_tiles)
    height = tl.minimum(num_row_tiles - band * neighbours, neighbours)
    within = index % (neighbours * num_column_tiles)
    return band * neighbours + within % height, within // height


@triton.jit(do_not_specialize=["num_rows"])
def matmul_kernel(
    rows, weights, bias, output, partial, num_rows, row_stride,
    num_columns: tl.constexpr, inner_size: tl.constexpr, chunk: tl.constexpr, row_block: tl.constexpr,
    column_block: tl.constexpr, inner_block: tl.constexpr, neighbours: tl.constexpr, apart: tl.constexpr,
    has_bias: tl.constexpr, wide: tl.constexpr,
):  # fmt: skip
    row_tile, column_tile = tile_of(
        tl.program_id(0), tl.cdiv(num_rows, row_block), tl.cdiv(num_columns, column_block), neighbours
    )
    own_rows = (row_tile * row_block + tl.arange(0, row_block)).to(tl.int64)
    columns = column_tile * column_block + tl.arange(0, column_block)
    row_there, column_there = own_rows < num_rows, columns < num_columns
    weight_at = columns.to(tl.int64) * inner_size
    there = row_there[:, None] & column_there[None]
    at = own_rows[:, None] * num_columns + columns[None]
    if apart:
        piece = tl.program_id(1)
        own = product(
            rows, own_rows * row_stride, row_there, weights, weight_at, column_there, piece * chunk,
            tl.minimum(piece * chunk + chunk, inner_size), inner_size, row_block, column_block, inner_block, wide,
        )  # fmt: skip
        tl.store(partial + piece.to(tl.int64) * num_rows * num_columns + at, own, mask=there)
    else:
        total = product_in_order(
            rows, own_rows * row_stride, row_there, weights, weight_at, column_there,
            inner_size, chunk, row_block, column_block, inner_block, wide,
        )  # fmt: skip
        if has_bias:
            total += tl.load(bias + columns, mask=column_there, other=0.0).to(tl.float32)[None]
        tl.store(output + at, total.to(output.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=["num_rows"])
def add_pieces_kernel(
    partial, bias, output, num_rows, num_columns: tl.constexpr, num_pieces: tl.constexpr, has_bias: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(1) * block + tl.arange(0, block)
    inside = columns < num_columns
    at = tl.program_id(0).to(tl.int64) * num_columns + columns
    size = num_rows.to(tl.int64) * num_columns
    total = tl.zeros((block,), tl.float32)
    for piece in tl.static_range(num_pieces):
        total += tl.load(partial + piece * size + at, mask=inside, other=0.0)
    if has_bias:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, total.to(output.dtype.element_ty), mask=inside)


def tiling(num_rows: int, dtype: torch.dtype) -> dict[str, Any]:
    """How a product of `num_rows` rows is cut, and with what it is launched: what both heights share gives the bits."""
    many = num_rows > FEW_ROWS
    return {
        "chunk": CHUNK,
        "row_block": MANY_ROWS if many else FEW_ROWS,
        "column_block": COLUMN_BLOCK,
        "inner_block": INNER_BLOCK[dtype.itemsize],
        "wide": interpreted(),
        "num_warps": 8 if many else 4,
        "num_stages": 4 if dtype.itemsize == 2 else 3,
    }


def matmul(rows: Tensor, weight: Tensor, *, bias: Tensor | None = None) -> Tensor:
    """rows @ weight.T + bias, [m, n] of the rows' dtype, summed in float32.

    rows [m, k], may be strided between rows; weight [n, k] contiguous and bias [n], as torch's `linear` takes them, of
    the rows' dtype.
    """
    (num_rows, inner_size), num_columns = rows.shape, weight.shape[0]
    output = torch.empty((num_rows, num_columns), dtype=rows.dtype, device=rows.device)
    if not num_rows:
        return output
    cut = tiling(num_rows, rows.dtype)
    num_tiles = triton.cdiv(num_rows, cut["row_block"]) * triton.cdiv(num_columns, COLUMN_BLOCK)
    num_pieces = triton.cdiv(inner_size, CHUNK)
    apart = num_pieces > 1 and num_tiles < num_processors(rows.device)
    partial = output
    if apart:
        partial = torch.empty((num_pieces, num_rows, num_columns), dtype=torch.float32, device=rows.device)
    own_bias = weight if bias is None else bias
    matmul_kernel[(num_tiles, num_pieces if apart else 1)](
        rows, weight, own_bias, output, partial, num_rows, rows.stride(0), num_columns=num_columns,
        inner_size=inner_size, neighbours=NEIGHBOURS, apart=apart, has_bias=bias is not None, **cut,
    )  # fmt: skip
    if apart:
        block = 1024
        add_pieces_kernel[(num_rows, triton.cdiv(num_columns, block))](
            partial, own_bias, output, num_rows, num_columns=num_columns, num_pieces=num_pieces,
            has_bias=bias is not None, block=block,
        )  # fmt: skip
    return output
