"""A better map of experts: nobody has too many, none is lost, and the busiest part has less to do."""

from __future__ import annotations

import numpy as np
import pytest

from pawl.gpu.parallel.placement import Placed, busiest, moves, rebalanced
from pawl.gpu.parallel.topology import shared_out


def evenly(experts: int, parts: int) -> Placed:
    return tuple((part,) for part, share in enumerate(shared_out(experts, parts)) for _ in share)


def test_random_loads_give_maps_with_room_for_everything_and_less_for_the_busiest() -> None:
    random = np.random.default_rng(3)
    helped = 0
    for _ in range(300):
        parts, redundant = int(random.integers(1, 6)), int(random.integers(0, 5))
        experts = parts + int(random.integers(0, 30))
        used = random.zipf(1.5, experts).clip(max=10_000)
        now = evenly(experts, parts)
        (new,) = rebalanced((now,), used[None], parts, redundant)
        held = np.bincount([part for owners in new for part in owners], minlength=parts)
        assert all(owners == tuple(sorted(set(owners))) and owners for owners in new)
        assert sum(held) <= experts + redundant
        assert new == now or held.max() - held.min() <= 1 + redundant
        assert held.max() <= -(-(experts + redundant) // parts)
        assert new == now or busiest(new, used, parts) <= 0.95 * busiest(now, used, parts)
        helped += new != now
    assert helped > 100


def test_an_expert_that_everybody_uses_is_in_all_parts_and_some_others_stay_where_they_are() -> None:
    now = evenly(6, 3)
    used = np.array([90, 1, 1, 1, 1, 1])
    (new,) = rebalanced((now,), used[None], 3, 3)
    assert new[0] == (0, 1, 2)
    assert busiest(new, used, 3) < 35 < busiest(now, used, 3)
    assert {(move.layer, move.expert) for move in moves((now,), (new,))} >= {(0, 0)}
    assert sum(before == after for before, after in zip(now, new, strict=True)) >= 2


@pytest.mark.parametrize("used", [[5, 5, 5, 5], [0, 0, 0, 0], [6, 5, 5, 5]])
def test_nothing_moves_where_that_would_not_help(used: list[int]) -> None:
    now = evenly(4, 2)
    assert rebalanced((now, ()), np.array([used, [0] * 4]), 2, 0) == (now, ())


def test_parts_are_numbered_so_that_few_experts_move() -> None:
    now = ((1,), (1,), (1,), (0,), (0,), (0,))
    used = np.array([9, 1, 1, 4, 1, 1])
    (new,) = rebalanced((now,), used[None], 2, 0)
    assert busiest(new, used, 2) <= busiest(now, used, 2)
    assert len(moves((now,), (new,))) <= 2
