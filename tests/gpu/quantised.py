"""Random blocks of every quantised format, and what the kernels must make of them, in numpy."""

from __future__ import annotations

import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import Q4_K, dequantize
from numpy.typing import NDArray

from pawl.gpu.weights.blocks import BlockFormat, Blocks

Floats = NDArray[np.float32]
FORMATS = tuple(BlockFormat)

_HALVES = {
    BlockFormat.Q4_1: (0, 2),
    BlockFormat.Q5_1: (0, 2),
    BlockFormat.Q4_K: (0, 2),
    BlockFormat.Q5_K: (0, 2),
    BlockFormat.Q6_K: (208,),
}
"""Where the numbers of half precision stand in a block; elsewhere it is the first one alone."""
_K = (BlockFormat.Q4_K, BlockFormat.Q5_K)
_WITH_LEAST = (*_K, BlockFormat.Q4_1, BlockFormat.Q5_1)


def random_blocks(
    kind: BlockFormat, rows: int, inputs: int, random: np.random.Generator, scale: float = 0.02
) -> NDArray[np.uint8]:
    """uint8 [rows, bytes of a row]: any bits, but scales that are numbers of about `scale`."""
    blocks = random.integers(0, 256, (rows, inputs // kind.inputs, kind.num_bytes), np.uint8)
    for place in _HALVES.get(kind, (0,)):
        halves = (scale * random.normal(size=blocks.shape[:2])).astype(np.float16)
        blocks[..., place : place + 2] = halves[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def numbers(kind: BlockFormat, blocks: NDArray[np.uint8]) -> Floats:
    """float32 [rows, inputs], as the format's authors define them."""
    return np.asarray(dequantize(blocks, GGMLQuantizationType(kind)), np.float32)


def multiply_add(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c, rounded once to float32."""
    product, addend = a.astype(np.float64) * b, c.astype(np.float64)  # exact
    total = product + addend
    part = total - product
    error = (product - (total - part)) + (addend - part)
    # To odd where something was lost: then the second rounding is the only one.
    odd = total.view(np.int64) & 1 == 1
    towards = np.where(error > 0, np.inf, -np.inf)
    total = np.where((error != 0) & ~odd, np.nextafter(total, towards), total)
    return total.astype(np.float32)


def as_bytes(rows: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Rows of activations as whole numbers [n, blocks, 32], and the scales of their blocks float32 [n, blocks]."""
    blocks = rows.reshape(len(rows), -1, 32)
    largest = np.abs(blocks).max(-1)
    something = largest > 1e-30
    inverse = np.where(something, np.float32(127) / np.where(something, largest, np.float32(1)), np.float32(0))
    return np.rint(blocks * inverse[..., None]).astype(np.int64), np.where(something, largest / np.float32(127), 0)


def product(kind: BlockFormat, blocks: NDArray[np.uint8], rows: Floats) -> Floats:
    """rows [n, inputs] times the weights: float32 [n, outputs], in exactly the kernels' order and roundings."""
    quants, scales, second = parts(kind, blocks)
    bytes_, row_scales = as_bytes(rows)
    total = np.zeros((len(rows), len(blocks)), np.float32)
    for block in range(quants.shape[1]):
        x, w = bytes_[:, block], quants[:, block]
        if kind == BlockFormat.Q6_K:  # each half of a block has a scale
            first = (x[:, :16] @ w[:, :16].T).astype(np.float32) * scales[:, block]
            one = multiply_add((x[:, 16:] @ w[:, 16:].T).astype(np.float32), second[:, block], first)
        else:
            one = (x @ w.T).astype(np.float32) * scales[:, block]
            if kind in _WITH_LEAST:
                sums = x.sum(-1, keepdims=True).astype(np.float32)
                one = multiply_add(second[:, block], sums, one)
        total = multiply_add(one, row_scales[:, block, None], total)
    return total


def parts(kind: BlockFormat, blocks: NDArray[np.uint8]) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Whole numbers [outputs, blocks, 32], without the format's offset; float32 [outputs, blocks] their scales, and the
    least, or the scale of the second half. The whole numbers are what the format makes of scales of 1."""
    stored = blocks.reshape(-1, kind.num_bytes)
    held = [stored[:, at : at + 2].copy().view(np.float16).astype(np.float32) for at in _HALVES.get(kind, (0,))]
    scales, second = held[0], held[-1]
    plain = stored.copy()
    for at, number in zip(_HALVES.get(kind, (0,)), (1, 0), strict=False):
        plain[:, at : at + 2] = np.array([number], np.float16).view(np.uint8)
    if kind in _K:
        factors, leasts = Q4_K.get_scale_min(np.ascontiguousarray(stored[:, 4:16]))
        scales, second = held[0] * factors.astype(np.float32), -(held[1] * leasts.astype(np.float32))
        plain[:, 4:16] = [1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1]
    elif kind == BlockFormat.Q6_K:
        factors = held[0] * stored[:, 192:208].view(np.int8).astype(np.float32)
        scales, second = factors[:, ::2], factors[:, 1::2]
        plain[:, 192:208] = 1
    whole = np.asarray(dequantize(plain, GGMLQuantizationType(kind)), np.float32).astype(np.int64)
    shape = len(blocks), -1
    return whole.reshape(*shape, 32), scales.reshape(shape), second.reshape(shape)


def blocks_of(kind: BlockFormat, rows: int, inputs: int, random: np.random.Generator) -> Blocks:
    """Random blocks as a weight of about unit gain."""
    blocks = random_blocks(kind, rows, inputs, random)
    gain = numbers(kind, blocks).std() * inputs**0.5
    for place in _HALVES.get(kind, (0,)):
        held = blocks.reshape(-1, kind.num_bytes)
        halves = held[:, place : place + 2].copy().view(np.float16) / gain
        held[:, place : place + 2] = halves.astype(np.float16).view(np.uint8)
    return Blocks(blocks, kind)
