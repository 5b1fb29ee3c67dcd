"""Workloads in which long and short prompts are computed beside each other."""

from __future__ import annotations

import pytest

from pawl.testing import crowding, explore_workload
from tests.mutants.everything import MUTANTS
from tests.mutants.mutant import planted


@pytest.mark.parametrize("name", ["long_prompts_starve", "longest_prompt_first"])
def test_whose_turn_it_is_shows_within_a_few_of_them(name: str) -> None:
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    with planted(mutant):
        found = [explore_workload(crowding(seed), "random", 3, seed=seed, shrink=False).found for seed in range(1, 4)]
    assert any(each is not None and "prompts_take_turns" in str(each) for each in found)


@pytest.mark.parametrize(
    "fixed", [{"prefill_chunk": 1}, {"page_size": 4}, {"num_pages": 3}, {"max_running": 1}, {"max_context": 6}]
)
def test_it_takes_what_is_fixed(fixed: dict[str, int]) -> None:
    for seed in range(2):
        workload = crowding(seed, **fixed)
        workload.shape.check()
        assert explore_workload(workload, "fair", 1, shrink=False).found is None
