"""Experts on the device: those that plain torch chooses, and the sum of what they say, in a row's own bits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from pawl.gpu.kernels.experts import PAIR_BLOCK, experts_forward, group, route
from pawl.gpu.models import experts as plain
from pawl.gpu.models.config import Experts
from tests.gpu.kernel_tools import DTYPES, NothingIsZeroed, ints, random

pytestmark = pytest.mark.usefixtures("sums_in_order")


def config(count: int, chosen: int, *, normalised: bool) -> Experts:
    return Experts(count=count, chosen=chosen, size=1, normalised=normalised, layers=(True,))


@pytest.mark.parametrize("normalised", [False, True])
def test_the_highest_scores_are_chosen_and_of_equal_ones_the_lower_number(normalised: bool) -> None:
    scores = random(6, 37)
    scores[1, [3, 30, 5]] = 9.0
    scores[2] = 0.0
    scores[3, 8] = float("-inf")
    with NothingIsZeroed():
        experts, shares = route(scores, 3, normalised)
    expected = plain.route(scores, config(37, 3, normalised=normalised))
    assert torch.equal(experts.long(), expected.experts)
    assert torch.allclose(shares, expected.shares, rtol=1e-5, atol=0)
    assert experts[1].tolist() == [3, 5, 30]
    assert experts[2].tolist() == [0, 1, 2]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, under the interpreter
def test_scores_that_are_no_numbers_choose_experts_that_exist() -> None:
    scores = random(3, 5)
    scores[0, 1] = scores[1] = float("nan")
    experts, shares = route(scores, 4, True)
    for row in experts.tolist():
        assert len(set(row)) == 4
        assert set(row) < set(range(5))
    assert experts[0].tolist() == [number for number in scores[0].argsort(descending=True).tolist() if number != 1]
    assert shares[:2].isnan().all()
    assert shares[2].isfinite().all()


def test_a_row_of_padding_has_no_experts() -> None:
    experts, _ = route(random(3, 5), 2, True, positions=ints([4, -1, 0]))
    assert (experts[1] == -1).all()
    assert (experts[[0, 2]] >= 0).all()


def test_pairs_are_placed_expert_after_expert_in_the_order_of_rows() -> None:
    experts = torch.randint(-1, 7, (700, 3), generator=torch.Generator().manual_seed(0)).int()
    # Nobody chose the fourth, and one row alone the sixth.
    experts[experts == 3] = 2
    experts[experts == 5] = 6
    experts[400, 1] = 5
    with NothingIsZeroed():
        counts, placed = group(ints(experts.flatten().tolist()).view_as(experts), 7)
    expected = [(experts.flatten() == expert).nonzero()[:, 0] for expert in range(7)]
    assert counts.tolist() == [len(pairs) for pairs in expected]
    assert torch.equal(placed[: int(counts.sum())].cpu().long(), torch.cat(expected))


def check_experts(rows: int, count: int, chosen: int, hidden_size: int, inner: int, dtype: torch.dtype) -> None:
    """Against plain torch, with padding, and most rows with the same expert; then some rows by themselves."""
    hidden = random(rows, hidden_size, dtype=dtype)
    gate_up = random(count, 2 * inner, hidden_size, dtype=dtype, seed=1) * hidden_size**-0.5
    down = random(count, hidden_size, inner, dtype=dtype, seed=2) * inner**-0.5
    scores = random(rows, count, seed=3)
    scores[5:, count // 2] += 3
    positions = ints([-1 if row == 2 else row for row in range(rows)])
    experts, shares = route(scores, chosen, True, positions=positions)

    def mlp(own: Tensor, expert: int) -> Tensor:
        gate, up = F.linear(own, gate_up[expert]).chunk(2, -1)
        return F.linear(F.silu(gate) * up, down[expert])

    expected = plain.mix(plain.route(scores, config(count, chosen, normalised=True)), hidden, range(count), mlp)
    expected[2] = 0
    with NothingIsZeroed():
        found = experts_forward(hidden, gate_up, down, experts, shares, "silu")
        # The interpreter cuts float32 off where a device rounds it: three times here, always towards zero.
        limit = 4e-2 if dtype == torch.bfloat16 else 1e-5
        assert torch.allclose(found, expected, rtol=limit, atol=limit)
        assert (found[2] == 0).all()
        for part in (slice(0, 1), slice(3, 9), slice(rows - 1, rows)):
            alone = experts_forward(hidden[part], gate_up, down, experts[part], shares[part], "silu")
            assert torch.equal(alone, found[part])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_sum_of_its_experts_alone_or_in_a_batch(dtype: torch.dtype) -> None:
    rows = PAIR_BLOCK + 20
    check_experts(rows, 5, 2, 51, 35, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [16, 4000])
def test_many_experts_are_summed_alone_or_in_a_batch(rows: int, dtype: torch.dtype) -> None:
    check_experts(rows, 128, 8, 2048, 768, dtype)


def test_no_rows_are_no_rows() -> None:
    experts, shares = route(random(0, 5), 2, True)
    assert experts_forward(random(0, 8), random(5, 6, 8), random(5, 8, 3), experts, shares, "silu").shape == (0, 8)
