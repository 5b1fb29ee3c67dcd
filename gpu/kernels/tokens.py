"""Which tokens go in: those that are still being drawn are looked up on the device, where they will be."""
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit(do_not_specialize=["num_tokens"])
def resolve_kernel(tokens, last_tokens, output, num_tokens, block: tl.constexpr):
    rows = tl.program_id(0) * block + tl.arange(0, block)
    inside = rows < num_tokens
    given = tl.load(tokens + rows, mask=inside, other=0)
    drawn = tl.load(last_tokens - 1 - given, mask=inside & (given < 0), other=0)
    tl.store(output + rows, tl.where(given < 0, drawn, given), mask=inside)


@triton.jit(do_not_specialize=["num_rows"])
def remember_kernel(last_tokens, slots, drawn, num_rows, block: tl.constexpr):
    rows = tl.program_id(0) * block + tl.arange(0, block)
    slot = tl.load(slots + rows, mask=rows < num_rows, other=-1)
    token = tl.load(drawn + rows, mask=slot >= 0, other=0).to(tl.int32)
    # A row whose scores were no numbers drew none; its request ends, but the step that follows it is on its way.
    tl.store(last_tokens + slot, tl.maximum(token, 0), mask=slot >= 0)


def resolve(tokens: Tensor, last_tokens: Tensor) -> Tensor:
    """The input tokens, int32 [t]: those given, with -1 - slot replaced by the entry of
    `slot` in last_tokens int32 [slots]."""
    output = torch.empty_like(tokens)
    if len(tokens):
        resolve_kernel[(triton.cdiv(len(tokens), BLOCK),)](tokens, last_tokens, output, len(tokens), block=BLOCK)
    return output


def remember(last_tokens: Tensor, slots: Tensor, drawn: Tensor) -> None:
    """Keep the tokens `drawn` [n], int32 or int64, for the distinct `slots` int32 [n]; a negative slot is nobody's.

    NO_TOKEN becomes 0, a token like any other.
    """
    if len(slots):
        grid = (triton.cdiv(len(slots), BLOCK),)
        remember_kernel[grid](last_tokens, slots, drawn, len(slots), block=BLOCK)
