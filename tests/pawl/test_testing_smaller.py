"""A counterexample gets smaller in everything that it does not need: faults, features of the server, requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from pawl.actors.simulation.exploration import Failure
from pawl.actors.simulation.faults import Faults
from pawl.testing import Workload, explore_workload
from pawl.testing.plugins import names_of
from pawl.testing.shape import Shape
from pawl.testing.smaller import Tried, smaller, smallest
from pawl.testing.workload import Arrival, Control

FAILURE: Any = object()
"""What says that it fails, where nothing more is asked of it."""
RICH = Shape(
    num_pages=10,
    page_size=1,
    pacing="pipeline",
    stages=2,
    host_pages=8,
    ranks=2,
    replicas=2,
    prefillers=1,
    max_restarts=1,
    step_s=0.02,
    num_speculative_tokens=1,
)
FAULTS = Faults(strike=2, rush=1, crash=1, freeze=1)


class LastComeFirstServed:
    """Not as it states."""

    name = "lifo"

    def order(self, rows: Sequence[int], waiting: object) -> Sequence[int]:
        return list(reversed(rows))


def without_one(numbers: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [numbers[:at] + numbers[at + 1 :] for at in range(len(numbers))]


def test_what_cannot_be_left_out_is_tried_once_until_something_else_was() -> None:
    tried: list[tuple[int, ...]] = []

    def fails(numbers: tuple[int, ...], before: Failure) -> Failure | None:
        tried.append(numbers)
        return FAILURE if {3, 4} <= set(numbers) else None

    assert smallest((3, 4, 5, 6), FAILURE, without_one, fails)[0] == (3, 4)
    assert tried == [(4, 5, 6), (3, 5, 6), (3, 4, 6), (3, 4), (4,), (3,)]


def test_it_ends_after_as_many_as_may_be_tried_and_when_it_is_over() -> None:
    assert smallest((1, 2, 3, 4), FAILURE, without_one, lambda less, before: FAILURE, most=2)[0] == (3, 4)
    assert smallest((1, 2), FAILURE, without_one, lambda less, before: FAILURE, over=lambda: True)[0] == (1, 2)


def test_each_is_told_of_the_failure_of_the_one_before() -> None:
    heard: list[Any] = []

    def fails(numbers: tuple[int, ...], before: Any) -> Any:
        heard.append(before)
        return numbers

    smallest((1, 2, 3), FAILURE, without_one, fails)
    assert heard == [FAILURE, (2, 3), (3,)]


def rich(shape: Shape = RICH) -> Tried:
    arrivals = tuple(Arrival(prompt=(97, 98, n), max_new_tokens=2, salt="a", priority=n) for n in range(4))
    return Tried(Workload(arrivals=arrivals, shape=shape, processes=True, encoded=True), FAULTS)


def test_all_that_is_smaller_is_a_server_that_can_be_and_something_else() -> None:
    every = smaller(rich())
    assert rich() not in every
    for each in every:
        each.workload.shape.check()
        assert each.workload.arrivals


def test_no_faults_a_plain_server_and_half_of_the_requests_are_among_the_first_of_their_kind() -> None:
    every = smaller(rich())
    assert every[0].faults == Faults()
    shapes = [each.workload.shape for each in every if each.workload.shape != RICH]
    assert shapes[0] == Shape(num_pages=10)
    requests = [len(each.workload.arrivals) for each in every]
    assert requests[requests.index(2) :][:2] == [2, 2]


@pytest.mark.parametrize(
    "own",
    [{"policy": "mine.py:Mine"}, {"cache": "mine.py:Mine"}, {"scheduler": "mine.py:Mine"}],
    ids=lambda own: [*own],
)
def test_a_part_of_ones_own_stays(own: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Shape, "check", lambda shape: None)  # nobody knows it
    shape = msgspec.structs.replace(RICH, **own)
    found = {each.workload.shape for each in smaller(rich(shape))}
    assert len(found) > 5
    assert {getattr(each, name) for each in found for name in own} == {*own.values()}


def test_what_is_found_in_a_rich_server_under_faults_is_told_of_a_plain_one_without_any() -> None:
    arrivals = tuple(Arrival(prompt=(97 + n, 98), max_new_tokens=2) for n in range(6))
    shape = msgspec.structs.replace(RICH, replicas=1, max_running=1, **names_of({"policy": LastComeFirstServed}))
    workload = Workload(arrivals=arrivals, shape=shape, processes=True, controls=())
    found = explore_workload(workload, "random", 10, seed=3, faults=FAULTS).found
    assert found is not None
    assert found.faults == Faults()
    assert len(found.workload.arrivals) <= 3
    assert not found.workload.processes
    plain = Shape(num_pages=found.workload.shape.num_pages, policy=found.workload.shape.policy)
    assert found.workload.shape == plain
    assert sum(map(bool, found.failure.shrunk.indices)) == 0


def test_orders_are_left_out_all_at_once_or_half_of_them() -> None:
    tried = rich()
    controls = tuple(Control(body=body) for body in every_body()[:4])
    with_orders = tried._replace(workload=msgspec.structs.replace(tried.workload, controls=controls))
    counts = [len(each.workload.controls) for each in smaller(with_orders)]
    assert [count for count in counts if count != 4] == [0, 2, 2, 3, 3, 3, 3]


def every_body() -> list[Any]:
    from pawl.features.row import Seeded
    from pawl.testing.workload import ROWS

    drawn = (row.draw(Seeded(seed)) for seed in range(60) for row in ROWS)
    return [body for body in drawn if body is not None]
