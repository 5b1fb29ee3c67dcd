"""Attention of segments: a row gets what plain arithmetic gives it, in bits that no cut and no neighbour changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pawl.gpu.kernels.prefill import attend_segments
from tests.gpu.kernel_tools import (
    DTYPES,
    LARGE_SHAPES,
    SHAPES,
    NothingIsZeroed,
    Shape,
    Slots,
    attention_close,
    ints,
    random,
)

pytestmark = pytest.mark.usefixtures("sums_in_order")


class Prompts:
    """Slots with the query of every position, each inside a wider row."""

    def __init__(self, shape: Shape, contexts: list[int], dtype: torch.dtype) -> None:
        self.slots = Slots(shape, contexts, dtype)
        width = shape.num_heads + 2 * shape.num_kv_heads
        self.queries = [random(n, width, shape.head_dim, dtype=dtype, seed=50 + i) for i, n in enumerate(contexts)]

    def attend(self, segments: list[tuple[int, int, int]], padding: int = 0) -> Tensor:
        """Rows of (slot, from, until), slot -1 for padding, and `padding` rows more after all."""
        shape = self.slots.shape
        nobody = torch.full_like(self.queries[0][:1], float("nan"))
        parts = [
            nobody.expand(until - begin, -1, -1) if slot < 0 else self.queries[slot][begin:until]
            for slot, begin, until in segments
        ]
        query = torch.cat([*parts, nobody.expand(padding, -1, -1)])[:, : shape.num_heads]
        offsets = torch.tensor([0, *(until - begin for _, begin, until in segments)]).cumsum(0)
        with NothingIsZeroed():
            return attend_segments(
                query, self.slots.keys, self.slots.values, self.slots.table, ints([slot for slot, *_ in segments]),
                ints([begin for _, begin, _ in segments]), ints(offsets.tolist()), **shape.options,
            )  # fmt: skip

    def expected(self, slot: int, position: int) -> Tensor:
        query = self.queries[slot][position, : self.slots.shape.num_heads]
        return self.slots.attended(query, slot, position)


def check_prompts(shape: Shape, contexts: list[int], cut: int, dtype: torch.dtype, every: int) -> None:
    """Whole prompts beside each other; then cut, the window's past gone, with padding and each other's rows between."""
    prompts = Prompts(shape, contexts, dtype)
    whole = prompts.attend([(slot, 0, context) for slot, context in enumerate(contexts)])
    ends = torch.tensor([0, *contexts]).cumsum(0).tolist()
    for slot, context in enumerate(contexts):
        for position in {*range(0, context, every), context - 1}:
            assert attention_close(whole[ends[slot] + position], prompts.expected(slot, position))
    if shape.window is not None:
        prompts.slots.hide_before(0, max(0, cut + 1 - shape.window))
        for slot, context in enumerate(contexts[1:], 1):
            prompts.slots.hide_before(slot, max(0, context - shape.window))
    # The rest of one prompt, two rows of nobody, the newest token of every other, three more rows of nobody.
    segments = [(0, cut, contexts[0]), (-1, 0, 2), *((slot, n - 1, n) for slot, n in enumerate(contexts) if slot)]
    mixed = prompts.attend(segments, padding=3)
    rest = contexts[0] - cut
    assert torch.equal(mixed[:rest], whole[cut : contexts[0]])
    assert torch.equal(mixed[rest + 2 : -3], whole[[end - 1 for end in ends[2:]]])
    assert (mixed[rest : rest + 2] == 0).all()
    assert (mixed[-3:] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_a_row_is_that_of_plain_arithmetic_whole_or_cut_or_as_a_new_token(name: str, dtype: torch.dtype) -> None:
    check_prompts(SHAPES[name], [150, 1, 70], 75, dtype, every=13)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LARGE_SHAPES)
def test_large_prompts_are_the_same_whole_or_cut(name: str, dtype: torch.dtype) -> None:
    check_prompts(LARGE_SHAPES[name], [4000, 2, 1, 1025, *range(100, 900, 50)], 1777, dtype, every=399)


def test_every_cut_gives_the_same_bits() -> None:
    prompts = Prompts(SHAPES["page-of-64"], [100], torch.float32)
    whole = prompts.attend([(0, 0, 100)])
    for begin, until in ((0, 1), (0, 33), (31, 33), (32, 64), (63, 100), (64, 65), (99, 100)):
        assert torch.equal(prompts.attend([(0, begin, until)]), whole[begin:until])


def test_a_batch_of_padding_is_zero() -> None:
    prompts = Prompts(SHAPES["group-of-3"], [3], torch.float32)
    assert (prompts.attend([(-1, 0, 1), (-1, 5, 6)], padding=70) == 0).all()
    assert (prompts.attend([], padding=1) == 0).all()
    assert prompts.attend([]).shape == (0, 60)
