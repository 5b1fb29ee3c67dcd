"""One token from each row of scores, without sorting and without asking the host anything.

    keep_top     for each row the least score that top-k and top-p keep
    draw         the likeliest token, or the winner of score + noise among those kept
    likeliest    the likeliest token, or that there is none

A program has a row to itself. The least score kept is found by bisection over the values that the row has: each pass
counts (or adds up) what lies above the middle, in one order. Equal scores are kept or left out together, so that at
such a limit a token more may be kept than `pawl.gpu.sampling.truncation` keeps, which sorts; noise is that of
`pawl.gpu.sampling.noise`.

Limits: a pass reads a row, most often from the cache; some ten to twenty passes for each of top-k and top-p.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from pawl.gpu.backend import NO_TOKEN
from pawl.gpu.kernels.machine import interpreted

BLOCK = 2048
NOBODY = tl.constexpr(NO_TOKEN)


@triton.jit
def above(scores, middle, highest, temperature, vocab_size, block: tl.constexpr):
    """Of a row's scores not less than `middle`: how many, their mass exp((score - highest) / temperature), the least.
    And the largest of the others."""
    count = tl.zeros((block,), tl.int32)
    mass = tl.zeros((block,), tl.float32)
    least = tl.full((block,), float("inf"), tl.float32)
    below = tl.full((block,), float("-inf"), tl.float32)
    for begin in range(0, vocab_size, block):
        tokens = begin + tl.arange(0, block)
        score = tl.load(scores + tokens, mask=tokens < vocab_size, other=float("-inf"))
        kept = score >= middle
        count += kept.to(tl.int32)
        mass += tl.where(kept, tl.exp((score - highest) / temperature), 0.0)
        least = tl.where(kept, tl.minimum(least, score), least)
        below = tl.where(kept, below, tl.maximum(below, score))
    return tl.sum(count), tl.sum(mass), tl.min(least), tl.max(below)


@triton.jit
def largest_enough(scores, low, high, wanted_count, wanted_mass, highest, temperature, vocab_size, block: tl.constexpr):
    """The largest score of the row such that it and those above are `wanted_count` and have `wanted_mass`. Both `low`
    and `high` are scores of the row; those from `low` on are enough."""
    while low < high:
        middle = low + (high - low) * 0.5
        # Between neighbours there is no middle.
        middle = tl.where(middle > low, tl.minimum(middle, high), high)
        count, mass, least, below = above(scores, middle, highest, temperature, vocab_size, block)
        enough = (count >= wanted_count) & (mass >= wanted_mass)
        low = tl.where(enough, least, low)
        high = tl.where(enough, high, tl.maximum(below, low))
    return low


@triton.jit
def keep_top_kernel(
    logits, temperatures, top_ks, top_ps, highests, thresholds, row_stride, vocab_size, block: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    scores = logits + row * row_stride
    highs = tl.full((block,), float("-inf"), tl.float32)
    lows = tl.full((block,), float("inf"), tl.float32)
    for begin in range(0, vocab_size, block):
        tokens = begin + tl.arange(0, block)
        score = tl.load(scores + tokens, mask=tokens < vocab_size, other=float("-inf"))
        highs = tl.maximum(highs, score)
        # Tokens that are barred have no score.
        lows = tl.where(score > float("-inf"), tl.minimum(lows, score), lows)
    highest, low = tl.max(highs), tl.min(lows)
    temperature = tl.load(temperatures + row)
    top_k, top_p = tl.load(top_ks + row), tl.load(top_ps + row)
    if (top_k > 0) & (top_k < vocab_size):
        low = largest_enough(scores, low, highest, top_k, 0.0, highest, temperature, vocab_size, block)
    if top_p < 1.0:
        _, mass, _, _ = above(scores, low, highest, temperature, vocab_size, block)
        low = largest_enough(scores, low, highest, 1, top_p * mass, highest, temperature, vocab_size, block)
    tl.store(highests + row, highest)
    tl.store(thresholds + row, low)


@triton.jit
def mixed(words):
    """A hash of uint32 words."""
    words = words ^ (words >> 16)
    words = words * 0x7FEB352D
    words = words ^ (words >> 15)
    words = words * 0x846CA68B
    return words ^ (words >> 16)


@triton.jit
def gumbel(first_key, second_key, tokens, wide: tl.constexpr):
    """Noise of `tokens`, float32; keys are uint32. The logarithms that Triton has by itself are not exact enough near
    1, where the winners are; the interpreter has only those, and they are exact there."""
    words = mixed(mixed((tokens.to(tl.uint32) * 0x9E3779B1) ^ first_key) + second_key)
    uniform = (words & 0x7FFFFFFF).to(tl.float32) * 4.656612873077393e-10 + 2.3283064365386963e-10
    uniform = tl.minimum(uniform, 0.99999994)
    if wide:
        rest = 1.0 - uniform
        # log1p(-u) = log(rest) * u / (1 - rest), exact although `rest` is rounded.
        lost = 1.0 - rest
        waited = tl.where(lost == 0.0, uniform, -tl.log(rest) * uniform / tl.where(lost == 0.0, 1.0, lost))
        noise = -tl.log(waited)
    else:
        noise = -libdevice.log(-libdevice.log1p(-uniform))
    return noise


@triton.jit
def draw_kernel(
    logits, temperatures, min_ps, keys, greedy, highests, thresholds, drawn, row_stride, vocab_size,
    wide: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    scores = logits + row * row_stride
    plain = tl.load(greedy + row) != 0
    highest, threshold = tl.load(highests + row), tl.load(thresholds + row)
    temperature = tl.load(temperatures + row)
    first_key = tl.load(keys + row * 2).to(tl.uint32, bitcast=True)
    second_key = tl.load(keys + row * 2 + 1).to(tl.uint32, bitcast=True)
    min_p = tl.load(min_ps + row)
    least_scaled = tl.where(min_p > 0, tl.log(tl.maximum(min_p, 1e-30)), float("-inf"))
    best = tl.full((block,), float("-inf"), tl.float32)
    chosen = tl.zeros((block,), tl.int32)
    for begin in range(0, vocab_size, block):
        tokens = begin + tl.arange(0, block)
        score = tl.load(scores + tokens, mask=tokens < vocab_size, other=float("-inf"))
        if plain:
            value = score
        else:
            scaled = tl.div_rn(score - highest, temperature)
            value = scaled + gumbel(first_key, second_key, tokens, wide)
            value = tl.where((score >= threshold) & (scaled >= least_scaled), value, float("-inf"))
        better = value > best
        best, chosen = tl.where(better, value, best), tl.where(better, tokens, chosen)
    tl.store(drawn + row, tl.min(tl.where(best == tl.max(best), chosen, vocab_size - 1)))


@triton.jit
def likeliest_kernel(logits, drawn, row_stride, vocab_size, block: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    best = tl.full((block,), float("-inf"), tl.float32)
    chosen = tl.zeros((block,), tl.int32)
    broken = tl.zeros((block,), tl.int32)
    for begin in range(0, vocab_size, block):
        tokens = begin + tl.arange(0, block)
        inside = tokens < vocab_size
        score = tl.load(logits + row * row_stride + tokens, mask=inside, other=float("-inf")).to(tl.float32)
        # Neither NaN nor an infinity is less than infinity in size.
        broken |= (inside & ~(tl.abs(score) < float("inf"))).to(tl.int32)
        better = score > best
        best, chosen = tl.where(better, score, best), tl.where(better, tokens, chosen)
    token = tl.min(tl.where(best == tl.max(best), chosen, vocab_size - 1))
    tl.store(drawn + row, tl.where(tl.max(broken) > 0, NOBODY, token))


def keep_top(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """The highest score of each row, and the least that top-k and then top-p keep: both float32 [m].

    logits float32 [m, vocab], -inf for a token that is barred; temperature float32 [m] > 0; top_k int32 [m], 0 for
    none; top_p float32 [m], of what top-k keeps. Arrays of [m] are contiguous.
    """
    num_rows, vocab_size = logits.shape
    highest, threshold = (torch.empty(num_rows, dtype=torch.float32, device=logits.device) for _ in range(2))
    if num_rows:
        keep_top_kernel[(num_rows,)](
            logits, temperature, top_k, top_p, highest, threshold, logits.stride(0), vocab_size, block=BLOCK,
            num_warps=8,
        )  # fmt: skip
    return highest, threshold


def draw(
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    keys: Tensor,
    greedy: Tensor,
) -> Tensor:
    """One token for each row, int32 [m], from logits as `keep_top` takes them.

    min_p float32 [m], relative to the likeliest token; keys int32 [m, 2] of `pawl.gpu.sampling.noise.row_keys`; greedy
    bool [m]: the largest score, the lowest token of equal ones, and nothing else about the row is looked at.
    """
    num_rows, vocab_size = logits.shape
    highest, threshold = keep_top(logits, temperature, top_k, top_p)
    drawn = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    if num_rows:
        draw_kernel[(num_rows,)](
            logits, temperature, min_p, keys, greedy, highest, threshold, drawn, logits.stride(0), vocab_size,
            wide=interpreted(), block=BLOCK, num_warps=8,
        )  # fmt: skip
    return drawn


def likeliest(logits: Tensor) -> Tensor:
    """The token of the largest of each row's logits [m, vocab] of any float dtype, the lowest of equal ones, int32 [m].
    NO_TOKEN for a row with a logit that is not a finite number."""
    num_rows, vocab_size = logits.shape
    drawn = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    if num_rows:
        likeliest_kernel[(num_rows,)](logits, drawn, logits.stride(0), vocab_size, block=BLOCK, num_warps=8)
    return drawn
