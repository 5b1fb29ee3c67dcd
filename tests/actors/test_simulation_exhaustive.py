"""Exhaustive search runs every class of equivalent schedules: as brute force, random walks and threads show."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.simulation.choice import Footprint, Kind, Value
from pawl.actors.simulation.exploration import Result, explore
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.network import all_wires, no_wires
from pawl.actors.simulation.strategies.exhaustive import Exhaustive, Reduction
from pawl.actors.simulation.strategies.races import Happened, races
from pawl.actors.simulation.strategies.simple import RandomWalk
from tests.actors.runtime_doing import GENEROUS_S
from tests.actors.toys import Letters, Note, spawn_writers, to, writing

Outcomes = set[tuple[str, ...]]

TWO_TO_ONE: Letters = (("a", Note("a", to("x"))), ("b", Note("b", to("x"))))
APART: Letters = (("a", Note("a", to("x"))), ("b", Note("b", to("y"))))
THREE_TO_ONE: Letters = (*TWO_TO_ONE, ("c", Note("c", to("x"))))


def search(
    names: str, letters: Letters, reduction: Reduction, *, limit: int = 20_000, **options: Any
) -> tuple[Result, Outcomes]:
    """Run everything; gives back what was written at rest in any run."""
    outcomes: Outcomes = set()
    result = explore(writing(names, letters, outcomes, **options), Exhaustive(reduction=reduction), limit)
    assert result.failure is None
    return result, outcomes


@pytest.mark.parametrize(
    ("names", "letters"), [("ax", (("a", Note("a", to("x", "x"))), ("x", Note("x")))), ("abx", TWO_TO_ONE)]
)
def test_both_reductions_reach_what_brute_force_reaches_in_fewer_runs(names: str, letters: Letters) -> None:
    runs = {reduction: search(names, letters, reduction, preempt=False) for reduction in Reduction}
    assert all(result.exhausted for result, _ in runs.values())
    brute, reached = runs[Reduction.NONE]
    assert brute.redundant == 0
    assert len(reached) > 1
    assert runs[Reduction.SLEEP][1] == reached
    assert runs[Reduction.SOURCE][1] == reached
    assert runs[Reduction.SOURCE][0].schedules <= runs[Reduction.SLEEP][0].schedules < brute.schedules


def test_every_class_is_run_to_its_end_once() -> None:
    """Two senders to one: which arrives first (2), and when the receiver takes and settles between (3 ways)."""
    result, outcomes = search("abx", TWO_TO_ONE, Reduction.SOURCE)
    assert {written for *_, written in outcomes} == {"a0|b0|", "b0|a0|", "a0b0|", "b0a0|"}
    # x may take the first message before or after the second one arrives, and settle in between or not.
    assert result.schedules - result.redundant == 2 * 3


def test_events_that_do_not_race_are_not_reordered() -> None:
    result, outcomes = search("abxy", APART, Reduction.SOURCE)
    assert len(outcomes) == 1
    assert result.schedules - result.redundant == 1
    assert result.exhausted


def test_three_senders_arrive_in_all_orders() -> None:
    _, outcomes = search("abcx", THREE_TO_ONE, Reduction.SOURCE)
    orders = {written.replace("|", "").replace("0", "") for *_, written in outcomes}
    assert orders == {"abc", "acb", "bac", "bca", "cab", "cba"}
    # And with every way to settle between them.
    assert len(outcomes) == 6 * 4


def notes(names: str) -> st.SearchStrategy[Letters]:
    """Up to three notes from outside, each passed on to up to two writers."""
    forward = st.lists(st.tuples(st.sampled_from(names), st.sampled_from(Lane)), max_size=2).map(tuple)
    letters = st.lists(st.tuples(st.sampled_from(names), forward), min_size=1, max_size=3)
    return letters.map(
        lambda rows: tuple((name, Note(letter, forward)) for letter, (name, forward) in zip("pqr", rows, strict=False))
    )


@settings(max_examples=25)
@given(notes("abc"), st.booleans(), st.booleans())
def test_no_random_walk_gets_where_the_exhaustive_search_did_not(letters: Letters, preempt: bool, wires: bool) -> None:
    options: dict[str, Any] = {"preempt": preempt, "is_wire": all_wires if wires else no_wires}
    by_source, reached = search("abc", letters, Reduction.SOURCE, limit=1000, **options)
    if not by_source.exhausted:
        return
    assert walk("abc", letters, 60, **options) <= reached


@settings(max_examples=15)
@given(notes("ab"), st.booleans())
def test_sleep_sets_alone_and_source_sets_reach_the_same(letters: Letters, wires: bool) -> None:
    options: dict[str, Any] = {"is_wire": all_wires if wires else no_wires}
    by_sleep, reached = search("ab", letters, Reduction.SLEEP, limit=1000, **options)
    by_source, also_reached = search("ab", letters, Reduction.SOURCE, **options)
    if by_sleep.exhausted:
        assert by_source.exhausted
        assert also_reached == reached
        assert by_source.schedules - by_source.redundant == by_sleep.schedules - by_sleep.redundant


class Blind(Exhaustive):
    """A canary: takes everything for independent."""

    def executed(self, footprint: Footprint) -> None:
        super().executed(Footprint(frozenset(), everything=False))


def test_a_search_that_takes_everything_for_independent_is_noticed() -> None:
    outcomes: Outcomes = set()
    explore(writing("abx", TWO_TO_ONE, outcomes), Blind(), 20_000)
    assert outcomes < search("abx", TWO_TO_ONE, Reduction.SLEEP)[1]


def walk(names: str, letters: Letters, num_walks: int, **options: Any) -> Outcomes:
    """What random walks reach."""
    outcomes: Outcomes = set()
    result = explore(writing(names, letters, outcomes, **options), RandomWalk(0), num_walks)
    assert result.failure is None
    return outcomes


@pytest.mark.parametrize("preempt", [True, False])
def test_senders_that_compete_for_the_last_place_depend_on_each_other(preempt: bool) -> None:
    """One place at x: who of a and b is refused depends on who sends first."""
    options: dict[str, Any] = {"preempt": preempt, "capacities": {"x": 1}}
    _, reached = search("abx", TWO_TO_ONE, Reduction.SOURCE, **options)
    assert {written.replace("|", "") for *_, written in reached} == {"a0", "b0", "a0b0", "b0a0"}
    assert search("abx", TWO_TO_ONE, Reduction.SLEEP, **options)[1] == reached
    assert walk("abx", TWO_TO_ONE, 150, **options) <= reached


def test_a_receiver_that_lets_its_sender_go_concerns_the_sender() -> None:
    letters: Letters = (("a", Note("a", to("x", "x"))), ("a", Note("b")), ("x", Note("x")), ("b", Note("c", to("a"))))
    options: dict[str, Any] = {"preempt": False, "capacities": {"x": 1}, "overflow": Overflow.HOLD}
    result, reached = search("abx", letters, Reduction.SOURCE, **options)
    assert result.exhausted
    assert walk("abx", letters, 300, **options) <= reached
    assert search("abx", letters, Reduction.SLEEP, **options)[1] == reached


def test_a_bounded_search_says_that_it_was_bounded() -> None:
    outcomes: Outcomes = set()
    result = explore(writing("abx", TWO_TO_ONE, outcomes), Exhaustive(max_depth=3), 20_000)
    assert result.schedules < 20_000
    assert not result.exhausted


def ready(name: str) -> Value:
    return Value(name, (name, 0), name, name, fault=False)


def test_what_happens_behind_the_bound_says_nothing_of_what_was_decided_before_it() -> None:
    def touched(max_depth: int) -> Footprint:
        strategy = Exhaustive(max_depth=max_depth)
        for name in "ab":
            strategy.choose(Kind.NEXT, [ready(name), ready("c")])
            strategy.executed(Footprint(frozenset(name), everything=False))
        return strategy._path[-1].footprint

    assert [touched(depth).targets for depth in (1, 2)] == [{"a"}, {"b"}]


def test_faults_are_choices_of_the_search_too() -> None:
    letters: Letters = (("x", Note("a")), ("x", Note("b")))
    faults = Faults(lose=1, double=1, crash=1)
    by_source, reached = search("x", letters, Reduction.SOURCE, is_wire=all_wires, faults=faults)
    brute, expected = search("x", letters, Reduction.NONE, is_wire=all_wires, faults=faults)
    assert by_source.exhausted
    assert brute.exhausted
    assert by_source.schedules <= brute.schedules
    assert reached == expected
    assert {("",), ("a",), ("b|",), ("ab|",), ("aab|",), ("a|bb|",)} <= reached


def test_what_threads_do_is_among_what_the_search_has_seen() -> None:
    letters: Letters = (("a", Note("a", to("x", "b"))), ("b", Note("b", to("x"))), ("x", Note("x")))
    _, reached = search("abx", letters, Reduction.SOURCE)
    for _ in range(40):
        system = LocalSystem()
        writers = spawn_writers(system, "abx", letters)
        system.start()
        # Upstream first: each has passed everything on before the next one is asked to stop.
        assert system.stop(["a", "b", "x"], timeout_s=GENEROUS_S) == ()
        assert tuple(writer.written for writer in writers.values()) in reached


def happened(*rows: tuple[str, str]) -> list[Happened]:
    return [Happened(owner, Footprint(frozenset(names.split()), everything=False)) for owner, names in rows]


def test_two_events_in_one_mailbox_race_unless_something_orders_them() -> None:
    free = happened(("a", ">a x"), ("b", ">b x"))
    assert [(race.earlier, race.first_owners) for race in races(free, 0)] == [(0, frozenset({"b"}))]
    # What b does to x it does because of what a did to b.
    caused = happened(("a", ">a x"), ("a", ">a b"), ("b", ">b b"), ("b", ">b x"))
    assert [race.earlier for race in races(caused, 3)] == []


def test_a_race_names_those_that_must_go_first() -> None:
    run = happened(("a", ">a x"), ("c", ">c b"), ("b", ">b b"), ("b", ">b x"))
    [race] = races(run, 3)
    assert (race.earlier, race.first_owners) == (0, frozenset({"c"}))
