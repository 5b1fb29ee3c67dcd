"""Tokens that are not known on the host yet are found on the device."""

from __future__ import annotations

import pytest
import torch

from pawl.gpu.backend import NO_TOKEN
from pawl.gpu.kernels.tokens import remember, resolve
from tests.gpu.kernel_tools import NothingIsZeroed, ints


def test_placeholders_become_the_last_tokens_of_their_slots() -> None:
    last_tokens = ints([40, 50, 60])
    with NothingIsZeroed():
        found = resolve(ints([7, -3, 0, -1, -3, 99]), last_tokens)
    assert found.tolist() == [7, 60, 0, 40, 60, 99]
    assert last_tokens.tolist() == [40, 50, 60]


def test_more_tokens_than_a_program_holds_are_resolved() -> None:
    slots = torch.arange(2500) % 3
    with NothingIsZeroed():
        found = resolve(ints((-1 - slots).tolist()), ints([40, 50, 60]))
    assert torch.equal(found.cpu(), (40 + 10 * slots).int())


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_drawn_tokens_are_kept_for_their_slots_and_no_other(dtype: torch.dtype) -> None:
    last_tokens = ints([1, 2, 3, 4, 5])
    remember(last_tokens, ints([4, -1, 0, 2]), ints([70, 80, 90, NO_TOKEN]).to(dtype))
    assert last_tokens.tolist() == [90, 2, 0, 4, 70]


def test_no_tokens_are_no_tokens() -> None:
    last_tokens = ints([1])
    remember(last_tokens, ints([]), ints([]))
    assert resolve(ints([]), last_tokens).tolist() == []
    assert last_tokens.tolist() == [1]
