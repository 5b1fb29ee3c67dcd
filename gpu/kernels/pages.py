"""What both attention kernels do with a tile of keys: find it in the pages, and add it to what queries have seen.

Rows of a tile are pairs (query, head): all query heads that share a key head go together, so that each key is loaded
once for them. The softmax is the running one of Milakov and Gimelshein (2018), with 2 as its base.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
BASE_CHANGE = tl.constexpr(LOG2_E)
LEAST_DOT = 16
"""The least extent of an operand of a matrix product."""


@triton.jit
def entries_at(table, key_positions, end, page_size: tl.constexpr, tile: tl.constexpr):
    """Entries of the flattened store, int64 [tile], for `key_positions` [tile], consecutive from a multiple of `tile`,
    of the slot with page table row `table`; those at `end` and beyond are any that exist."""
    if page_size % tile == 0:
        # The tile lies in one page: one look-up, and addresses that the compiler knows to be consecutive.
        first = tl.min(key_positions, axis=0)
        page = tl.load(table + first // page_size).to(tl.int64)
        entries = page * page_size + (first % page_size) + (key_positions - first)
    else:
        pages = tl.load(table + key_positions // page_size, mask=key_positions < end, other=0).to(tl.int64)
        entries = pages * page_size + key_positions % page_size
    return entries


@triton.jit
def score_keys(query, keys, scale, soft_cap, capped: tl.constexpr, wide: tl.constexpr):
    """Scores in base 2, float32 [rows, tile], of query [rows, d] and keys [d, tile]. `wide`: multiply in float32, for
    the interpreter, whose products of bfloat16 are wrong."""
    if wide:
        query, keys = query.to(tl.float32), keys.to(tl.float32)
    scores = tl.dot(query, keys, input_precision="ieee") * scale
    if capped:
        # cap * tanh(scores / cap); scale is that of base e here.
        scores = soft_cap * (2.0 * tl.sigmoid(2.0 * scores / soft_cap) - 1.0) * BASE_CHANGE
    return scores


@triton.jit
def see(scores, values, highest, total, seen, wide: tl.constexpr):
    """Add a tile to what rows have seen: scores [rows, tile] (-inf: hidden), values [tile, d]; highest, total float32
    [rows]; seen float32 [rows, d]. Returns the last three anew."""
    new_highest = tl.maximum(highest, tl.max(scores, axis=1))
    # A row that has seen nothing yet has no highest score to measure by.
    base = tl.where(new_highest == float("-inf"), 0.0, new_highest)
    weights = tl.exp2(scores - base[:, None])
    kept = tl.exp2(highest - base)
    total = total * kept + tl.sum(weights, axis=1)
    weights = weights.to(values.dtype)
    if wide:
        weights, values = weights.to(tl.float32), values.to(tl.float32)
    seen = tl.dot(weights, values, seen * kept[:, None], input_precision="ieee")
    return new_highest, total, seen
