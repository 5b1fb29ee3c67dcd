"""A number is given once, and says of itself whether its prompt is long: order holds among numbers of a kind."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pawl.lifecycle.numbers import LONG, Newest, is_long, numbers_from, passed


@given(first=st.integers(1, 10_000), count=st.integers(0, 300), long=st.booleans())
def test_numbers_are_the_lowest_of_their_kind(first: int, count: int, long: bool) -> None:
    numbers = list(numbers_from(first, count, long))
    every = [number for number in range(first, first + (count + 1) * (LONG + 1)) if is_long(number) == long]
    assert numbers == every[:count]


def test_whether_one_has_been_depends_on_its_own_kind_alone() -> None:
    newest = Newest()
    for request in (1, 2, 70):
        newest.came(request)
    assert [newest.has_been(request) for request in (2, 69, 70, 71)] == [True, True, True, False]
    assert not newest.has_been(64), "a long one comes when it has been read"
    newest.came(64)
    assert newest.has_been(64)
    assert not newest.has_been(128)


def test_one_that_comes_passes_those_before_it_of_its_kind() -> None:
    waiting = [3, 64, 70, 128]
    assert passed(71, waiting) == [3, 70]
    assert passed(128, waiting) == [64]
