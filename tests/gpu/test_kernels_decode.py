"""Decode attention: a row gets what plain arithmetic gives it, from its own pages alone, in the same bits always."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pawl.gpu.kernels import decode
from pawl.gpu.kernels.decode import attend_decode, splits_for
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

CONTEXTS = [1, 300, 65, 6]
PADDING = 2
"""The row of the batch that is nobody's."""


def attend(slots: Slots, query: Tensor, rows: list[int], num_splits: int | None = None) -> Tensor:
    """The newest token of each of the slots `rows`, -1 for padding; query [len(rows), heads, head_dim]."""
    positions = [slots.contexts[slot] - 1 if slot >= 0 else -1 for slot in rows]
    if num_splits is None:
        num_splits = splits_for(max(slots.contexts))
    with NothingIsZeroed():
        return attend_decode(
            query, slots.keys, slots.values, slots.table, ints(rows), ints(positions),
            num_splits=num_splits, **slots.shape.options,
        )  # fmt: skip


def check_rows(shape: Shape, contexts: list[int], dtype: torch.dtype) -> None:
    """A batch in no order, with padding, its queries inside wider rows; each row also by itself."""
    slots = Slots(shape, contexts, dtype)
    rows = list(reversed(range(len(contexts))))
    rows.insert(PADDING, -1)
    for slot, context in enumerate(contexts):
        if shape.window is not None:
            slots.hide_before(slot, max(0, context - shape.window))
    wider = random(len(rows), shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim, dtype=dtype)
    query = wider[:, : shape.num_heads]
    found = attend(slots, query, rows)
    for row, slot in enumerate(rows):
        if slot < 0:
            assert (found[row] == 0).all()
            continue
        assert attention_close(found[row], slots.attended(query[row], slot, contexts[slot] - 1))
        assert torch.equal(found[row], attend(slots, query[row : row + 1], [slot])[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_a_row_sees_its_own_keys_and_nothing_else_alone_or_in_a_batch(name: str, dtype: torch.dtype) -> None:
    check_rows(SHAPES[name], CONTEXTS, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", LARGE_SHAPES)
def test_large_rows_see_their_own_keys_alone_or_in_a_batch(name: str, dtype: torch.dtype) -> None:
    check_rows(LARGE_SHAPES[name], [1, 5000, 40_000, 256, 257, 777, *range(100, 900, 50)], dtype)


def test_the_size_of_the_grid_changes_no_bit() -> None:
    slots, query = Slots(SHAPES["group-of-3"], [600, 30]), random(2, 6, 10)
    assert torch.equal(attend(slots, query, [0, 1]), attend(slots, query, [0, 1], num_splits=7))


def test_stretches_grow_where_there_would_be_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "STRETCH", 64)
    monkeypatch.setattr(decode, "MOST_STRETCHES", 2)
    slots, query = Slots(SHAPES["page-of-7"], [400, 129, 128]), random(3, 2, 64)
    assert splits_for(400) == 2
    for row, found in enumerate(attend(slots, query, [0, 1, 2])):
        assert attention_close(found, slots.attended(query[row], row, slots.contexts[row] - 1))


def test_no_rows_are_no_rows() -> None:
    assert attend(Slots(SHAPES["page-of-1"], [3]), random(0, 2, 16), []).shape == (0, 32)
