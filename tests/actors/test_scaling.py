"""How many replicas a load asks for: a function of numbers and times."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest

from pawl.actors.scaling import Rule, Since, Verdict, scaled

RULE = Rule(least=1, most=4, at=10, up_s=2.0, down_s=60.0)


def run(loads: Iterable[tuple[float, int]], wanted: int = 1, rule: Rule = RULE) -> list[int]:
    """The number after each look, of (seconds, open requests)."""
    since, numbers = Since(), []
    for now, num_open in loads:
        verdict = scaled(rule, since, now, wanted, num_open)
        wanted, since = verdict.wanted, verdict.since
        numbers.append(wanted)
    return numbers


def test_a_load_that_stays_high_gets_as_many_replicas_as_it_needs_and_a_burst_gets_none() -> None:
    assert run([(0.0, 10), (1.0, 10), (2.0, 10)]) == [1, 1, 2]
    assert run([(0.0, 35), (2.0, 35)]) == [1, 4]
    assert run([(0.0, 500), (2.0, 500), (9.0, 500)]) == [1, 4, 4]
    assert run([(0.0, 10), (1.0, 9), (1.5, 10), (2.5, 10), (3.5, 10)]) == [1, 1, 1, 1, 2]


def test_replicas_leave_one_by_one_each_after_a_long_while_of_little_to_do() -> None:
    assert run([(0.0, 0), (59.0, 0), (60.0, 0), (119.0, 0), (120.0, 0), (900.0, 0)], wanted=3) == [3, 3, 2, 2, 1, 1]
    assert run([(0.0, 10), (60.0, 11), (61.0, 10), (120.0, 10), (121.0, 10)], wanted=3) == [3, 3, 3, 3, 2]


@pytest.mark.parametrize("load", range(45))
def test_a_load_that_stays_where_it_is_ends_at_a_number_that_stays_where_it_is(load: int) -> None:
    looks = [(10.0 * look, load) for look in range(100)]
    for wanted in range(1, 5):
        numbers = run(looks, wanted)
        turns = [after - before for before, after in pairwise(numbers) if after != before]
        assert len({turn > 0 for turn in turns}) <= 1  # up, or down, and never both
        assert numbers[-30:] == [numbers[-1]] * 30


def test_it_is_said_when_to_look_again_and_where_nothing_can_change_never() -> None:
    assert scaled(RULE, Since(), 5.0, 1, 10) == Verdict(1, Since(high=5.0), 7.0)
    assert scaled(RULE, Since(), 5.0, 2, 5) == Verdict(2, Since(low=5.0), 65.0)
    assert scaled(RULE, Since(), 5.0, 2, 6) == Verdict(2, Since(), None)
    assert scaled(RULE, Since(), 5.0, 4, 99).due is None
    assert scaled(RULE, Since(), 5.0, 1, 0).due is None
    # The number that has just come is looked at from now on.
    assert scaled(RULE, Since(low=5.0), 65.0, 3, 0) == Verdict(2, Since(low=65.0), 125.0)
