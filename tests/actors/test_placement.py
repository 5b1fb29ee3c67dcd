"""Where the router's policies put a request."""

from __future__ import annotations

import numpy as np
import pytest

from pawl.actors.placement import AFFINITY_BOUND, PLACEMENTS, Load, PrefixAffinity

TOKENS = np.arange(12, dtype=np.int32)


def placed(name: str, *loads: tuple[int, int, int]) -> int:
    return PLACEMENTS[name](4, 1).place(TOKENS, "", [Load(*load) for load in loads])


@pytest.mark.parametrize(
    ("name", "loads", "replica"),
    [
        ("shortest_queue", [(0, 2, 1), (1, 1, 9), (2, 1, 8)], 2),
        ("shortest_queue", [(0, 1, 8), (1, 1, 8)], 0),
        ("total_tokens", [(0, 1, 9), (1, 9, 8), (2, 3, 8)], 2),
        ("total_tokens", [(0, 3, 8), (1, 3, 8)], 0),
        ("prefix_affinity", [(0, 1, 9), (1, 1, 8)], 1),
        ("round_robin", [(3, 9, 9), (5, 0, 0)], 3),
    ],
)
def test_a_request_that_nobody_knows_goes_to_the_one_with_the_least_to_do(
    name: str, loads: list[tuple[int, int, int]], replica: int
) -> None:
    assert placed(name, *loads) == replica


def test_each_is_the_next_one_in_its_turn_and_who_has_come_or_gone_changes_nothing_else() -> None:
    turns = PLACEMENTS["round_robin"](4, 1)
    there = [(0, 1, 3), (0, 1, 3), (0, 2, 3), (0, 2), (2,), (2, 7)]
    chosen = [turns.place(TOKENS, "", [Load(number, 0, 0) for number in numbers]) for numbers in there]
    assert chosen == [0, 1, 2, 0, 2, 7]


class Busy:
    """Replicas of which a test says how many requests each has, under one policy."""

    def __init__(self, bound: int = 2) -> None:
        self.policy, self.open = PrefixAffinity(4, bound), [0, 0, 0]

    def place(self, *tokens: int, namespace: str = "", among: tuple[int, ...] = (0, 1, 2)) -> int:
        loads = [Load(number, self.open[number], 0) for number in among]
        return self.policy.place(np.array(tokens, np.int32), namespace, loads)


def test_a_prompt_goes_where_the_longest_part_of_it_was_last() -> None:
    busy = Busy()
    busy.open = [0, 1, 1]
    assert busy.place(*range(8)) == 0
    busy.open = [1, 0, 1]
    assert busy.place(*range(4), 9, 9, 9, 9) == 0, "its first page is there"
    assert busy.place(7, *range(8)) == 1, "pages are of whole beginnings"
    assert busy.place(*range(3)) == 1, "less than a page says nothing"
    assert busy.place(*range(8), namespace="other") == 1
    assert [busy.place(*range(8), namespace=name) for name in ("", "other")] == [0, 1]
    assert busy.place(*range(8), among=(1, 2)) == 1, "who is gone has nothing"
    assert busy.place(*range(8)) == 1, "and another one has it now"


def test_who_has_so_many_more_than_the_least_busy_is_left_alone() -> None:
    busy = Busy(bound=2)
    assert busy.place(*range(8)) == 0
    busy.open = [3, 1, 2]
    assert busy.place(*range(8)) == 0, "two more may be"
    busy.open = [4, 1, 2]
    assert busy.place(*range(12)) == 1
    busy.open = [0, 1, 2]
    assert busy.place(*range(8)) == 1, "it has it now"
    assert PrefixAffinity(4)._bound == AFFINITY_BOUND


def test_the_longest_part_that_anybody_knows_decides_alone() -> None:
    busy = Busy(bound=0)
    busy.open = [0, 1, 1]
    assert busy.place(*range(4)) == 0
    busy.open = [1, 1, 0]
    assert busy.place(*range(8)) == 2, "who had the first page is busy"
    busy.open = [0, 1, 1]
    assert busy.place(*range(8)) == 0, "and now the other one is, and all is where it was"
