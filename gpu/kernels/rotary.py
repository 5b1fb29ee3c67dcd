"""Rotary embedding of queries and keys, their norms, and the way of keys and values into their pages: one pass."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pawl.gpu.kernels.machine import padded
from pawl.gpu.models.config import ModelConfig


@triton.jit
def turned(pointer, weight, heads, num_heads, position, frequencies, epsilon,
           head_dim: tl.constexpr, half_block: tl.constexpr, normed: tl.constexpr):  # fmt: skip
    """Both halves of each head at `pointer` [heads, head_dim], normed where wanted, then turned by position; the
    mask and the places they came from. What is normed is rounded before it is turned."""
    half: tl.constexpr = head_dim // 2
    columns = tl.arange(0, half_block)[None]
    inside = (heads < num_heads)[:, None] & (columns < half)
    at = heads[:, None] * head_dim + columns
    first = tl.load(pointer + at, mask=inside, other=0.0)
    second = tl.load(pointer + at + half, mask=inside, other=0.0)
    dtype = first.dtype
    first, second = first.to(tl.float32), second.to(tl.float32)
    if normed:
        mean_square = (tl.sum(first * first, axis=1) + tl.sum(second * second, axis=1)) / head_dim
        scale = tl.rsqrt(mean_square + epsilon)[:, None]
        first = (first * scale * tl.load(weight + columns, mask=columns < half, other=0.0)).to(dtype).to(tl.float32)
        second = (second * scale * tl.load(weight + half + columns, mask=columns < half, other=0.0)).to(dtype)
        second = second.to(tl.float32)
    angles = position.to(tl.float32) * tl.load(frequencies + columns, mask=columns < half, other=0.0)
    cosine, sine = tl.cos(angles), tl.sin(angles)
    turned_first = (first * cosine - second * sine).to(dtype)
    turned_second = (second * cosine + first * sine).to(dtype)
    return turned_first, turned_second, inside, at


@triton.jit
def turn_and_store_kernel(
    qkv, positions, written, frequencies, query_norm, key_norm, keys, values, epsilon,
    num_heads: tl.constexpr, num_kv_heads: tl.constexpr, head_dim: tl.constexpr, normed: tl.constexpr,
    head_block: tl.constexpr, kv_block: tl.constexpr, half_block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    half: tl.constexpr = head_dim // 2
    position = tl.load(positions + row)
    queries = qkv + row * (num_heads + 2 * num_kv_heads) * head_dim
    first, second, inside, at = turned(
        queries, query_norm, tl.arange(0, head_block), num_heads, position, frequencies, epsilon,
        head_dim, half_block, normed,
    )  # fmt: skip
    tl.store(queries + at, first, mask=inside)
    tl.store(queries + at + half, second, mask=inside)
    entry = tl.load(written + row).to(tl.int64)
    # A row of padding has no entry and must leave every page as it is.
    if entry >= 0:
        page = entry * num_kv_heads * head_dim
        own_keys = queries + num_heads * head_dim
        first_key, second_key, kv_inside, kv_at = turned(
            own_keys, key_norm, tl.arange(0, kv_block), num_kv_heads, position, frequencies, epsilon,
            head_dim, half_block, normed,
        )  # fmt: skip
        tl.store(keys + page + kv_at, first_key, mask=kv_inside)
        tl.store(keys + page + kv_at + half, second_key, mask=kv_inside)
        own_values = own_keys + num_kv_heads * head_dim
        first_value = tl.load(own_values + kv_at, mask=kv_inside, other=0.0)
        second_value = tl.load(own_values + kv_at + half, mask=kv_inside, other=0.0)
        tl.store(values + page + kv_at, first_value, mask=kv_inside)
        tl.store(values + page + kv_at + half, second_value, mask=kv_inside)


def turn_and_store(
    config: ModelConfig,
    qkv: Tensor,
    positions: Tensor,
    written: Tensor,
    frequencies: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
) -> None:
    """Norm (with weights float32 [head_dim]) and turn the queries in `qkv` in place; put keys and values into pages.

    qkv [t, (heads + 2 * kv_heads) * head_dim] contiguous; positions int32 [t]; written int32 [t], the entry of the
    flattened store for each row, negative for none; frequencies float32 [head_dim / 2], radians per position; keys and
    values [pages, page_size, kv_heads, head_dim], contiguous, of qkv's dtype.
    """
    if not len(qkv):
        return
    turn_and_store_kernel[(len(qkv),)](
        qkv, positions, written, frequencies, frequencies if query_norm is None else query_norm,
        frequencies if key_norm is None else key_norm, keys, values, config.norm_epsilon,
        num_heads=config.num_heads, num_kv_heads=config.num_kv_heads, head_dim=config.head_dim,
        normed=query_norm is not None, head_block=padded(config.num_heads), kv_block=padded(config.num_kv_heads),
        half_block=padded(config.head_dim // 2),
    )  # fmt: skip
