"""Each strategy's own idea by itself, and shrinking."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.runtime.actor import Actor
from pawl.actors.simulation.choice import Choices, ChoiceSource, Guide, Kind, Value
from pawl.actors.simulation.exploration import Case, explore
from pawl.actors.simulation.shrinking import Shrinker, cost, halves, trimmed
from pawl.actors.simulation.strategies.coverage import CoverageGuided
from pawl.actors.simulation.strategies.drawn import MOST_DEVIATIONS, Drawn
from pawl.actors.simulation.strategies.pct import LENGTHS, PCT
from pawl.actors.simulation.strategies.pos import POS
from pawl.actors.simulation.strategies.simple import Fair, Guided, RandomWalk, Strategy
from pawl.actors.simulation.system import SimulatedSystem
from tests.actors.toys import Letters, Note, spawn_writers, to, writing


def option(name: str, target: str, *, fault: bool = False) -> Value:
    return Value(name, (name, 0), name, target, fault)


# ---- what is left of a schedule ----


def test_a_guide_decides_by_name_what_is_left_of_a_larger_run_and_the_rest_fairly() -> None:
    guide = Guide(["gone", "c", "a", "a", "gone", "b"])
    three = [option(name, "x") for name in "abc"]
    assert [guide.choose(Kind.NEXT, three) for _ in range(5)] == [2, 0, 0, 1, 0]
    assert guide.choose(Kind.NEXT, [option("x", "x"), option("gone", "x")]) == 1


def test_a_guided_strategy_begins_with_the_schedule_that_it_was_given_and_goes_on_as_another() -> None:
    def chosen(strategy: Strategy) -> list[int]:
        assert strategy.begin()
        return [strategy.choose(Kind.NEXT, [option(name, "x") for name in "abcdefgh"]) for _ in range(20)]

    guided, walk = Guided(["h"] * 20, RandomWalk(3)), RandomWalk(3)
    assert chosen(guided) == [7] * 20
    assert [chosen(guided) for _ in range(3)] == [chosen(walk) for _ in range(3)]
    only = Guided([], Fair())
    assert [only.begin() for _ in range(3)] == [True, True, False]


# ---- PCT ----


def test_a_change_of_priorities_finds_what_priorities_alone_do_not() -> None:
    """b gets in between two sends of a only if a falls behind after the first."""
    letters: Letters = (("a", Note("a", to("x", "x"))), ("b", Note("b", to("x"))))

    def reached(depth: int) -> set[str]:
        outcomes: set[tuple[str, ...]] = set()
        explore(writing("abx", letters, outcomes), PCT(1, depth), 150)
        return {written.replace("|", "") for *_, written in outcomes}

    assert reached(depth=1) == {"a0a1b0", "b0a0a1"}
    assert reached(depth=2) == {"a0a1b0", "b0a0a1", "a0b0a1"}


def test_who_has_the_highest_priority_goes_on_until_it_cannot() -> None:
    strategy = PCT(5, depth=1)
    strategy.begin()
    options = [option(name, "x") for name in "abcdef"]
    order = []
    while options:
        first = strategy.choose(Kind.NEXT, options)
        assert strategy.choose(Kind.NEXT, options) == first
        order.append(options.pop(first).label)
    strategy.begin()
    options = [option(name, "x") for name in "abcdef"]
    assert order != [options.pop(strategy.choose(Kind.NEXT, options)).label for _ in range(6)]


@pytest.mark.parametrize("changes", [{"depth": 0}, {"length": -1}])
def test_a_depth_below_one_and_a_length_below_zero_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        PCT(1, **changes)


def test_priorities_change_anywhere_in_a_run_of_unknown_length() -> None:
    strategy, places = PCT(3), list[int]()
    for _ in range(200):
        strategy.begin()
        places += strategy._changes
    for first, last in pairwise((0, *LENGTHS)):
        assert any(first <= place < last for place in places), f"none between {first} and {last}"
    assert max(places) < LENGTHS[-1]


# ---- POS ----


class Draws:
    """Stands for a generator; gives what it is told."""

    def __init__(self, *values: float) -> None:
        self.values: Iterator[float] = iter(values)

    def random(self) -> float:
        return next(self.values)


def test_events_that_lost_a_race_draw_again_and_others_do_not() -> None:
    strategy = POS(1)
    strategy.begin()
    strategy.random = Draws(0.9, 0.5, 0.7, 0.8, 0.1)  # type: ignore[assignment]
    first, rival, apart = option("first", "x"), option("rival", "x"), option("apart", "y")
    assert strategy.choose(Kind.NEXT, [first, rival, apart]) == 0
    # The rival draws 0.8 now, the one apart keeps its 0.7.
    assert strategy.choose(Kind.NEXT, [rival, apart]) == 0
    assert strategy.choose(Kind.NEXT, [apart, option("new", "z")]) == 0


# ---- coverage ----

PATTERN = "abbabaabba"


class Lock(Actor):
    """Opens when letters come in one order; the first wrong one jams it."""

    accepts = Note

    def __init__(self) -> None:
        self.progress = 0

    def receive(self, message: Any) -> None:
        if 0 <= self.progress < len(PATTERN):
            self.progress = self.progress + 1 if message.letter[0] == PATTERN[self.progress] else -1


class Locked(Case):
    """The lock never opens."""

    def __init__(self, system: SimulatedSystem, lock: Lock) -> None:
        super().__init__(system)
        self.lock = lock

    def at_rest(self) -> None:
        assert self.lock.progress < len(PATTERN), "open"

    def state(self) -> int:
        return self.lock.progress


def locked(source: ChoiceSource) -> Case:
    system = SimulatedSystem(source, preempt=False)
    lock = Lock()
    system.spawn(lock, "lock")
    spawn_writers(system, "ab", tuple((letter, Note(letter, to("lock"))) for letter in PATTERN))
    system.start()
    return Locked(system, lock)


def test_what_was_reached_before_leads_further_than_chance() -> None:
    def schedules(make: Callable[[int], Strategy]) -> int:
        return sum(explore(locked, make(seed), 2000, most_shrink_runs=0).schedules for seed in range(4))

    assert schedules(CoverageGuided) * 2 < schedules(RandomWalk)


def test_states_are_counted_and_what_found_them_is_kept() -> None:
    strategy = CoverageGuided(1)
    result = explore(locked, strategy, 100, most_shrink_runs=0)
    assert result.states == len(strategy.seen) > 3
    assert 1 < len(strategy.corpus) <= result.states


# ---- faults ----


@pytest.mark.parametrize("make", [RandomWalk, PCT, POS, CoverageGuided])
def test_faults_are_as_rare_as_they_are_said_to_be(make: Callable[..., Any]) -> None:
    strategy = make(1, fault_rate=0.1)
    strategy.begin()
    options = [option("a", "x"), option("b", "x"), option("lose c", "", fault=True)]
    chosen = [strategy.choose(Kind.NEXT, options) for _ in range(2000)]
    assert 120 < chosen.count(2) < 300
    never = make(1, fault_rate=0.0)
    never.begin()
    assert 2 not in [never.choose(Kind.NEXT, options) for _ in range(500)]


# ---- shrinking ----


def recorded(indices: Sequence[int]) -> Choices:
    choices = Choices()
    for at, index in enumerate(indices):
        choices.add(Kind.NEXT, index, f"{at}: {index}")
    return choices


@given(st.lists(st.integers(0, 5), max_size=30), st.integers(1, 4))
def test_what_remains_is_what_the_failure_needs(noise: list[int], needed: int) -> None:
    """It fails when two deviations follow each other, the second at least `needed`."""

    def fails(indices: Sequence[int]) -> bool:
        return any(first > 0 and second >= needed for first, second in pairwise(indices))

    tried: list[tuple[int, ...]] = []

    def run(indices: Sequence[int]) -> Choices | None:
        tried.append(tuple(indices))
        return recorded(indices) if fails(indices) else None

    start = recorded([*noise, 3, 5])
    assert len(start) == len(noise) + 2
    shrinker = Shrinker(start, run, most_runs=2000)
    assert shrinker.shrink().indices == [1, needed]
    assert len(set(tried)) == len(tried) == shrinker.num_runs  # none of them twice
    assert cost(shrinker.best) <= cost(start)


def test_one_late_deviation_is_found_in_place_of_two() -> None:
    def fails(indices: Sequence[int]) -> bool:
        deviations = [at for at, index in enumerate(indices) if index]
        return deviations in ([2, 5], [6])

    shrinker = Shrinker(recorded([0, 0, 1, 0, 0, 1]), lambda indices: recorded(indices) if fails(indices) else None)
    assert shrinker.shrink().indices == [0, 0, 0, 0, 0, 0, 1]


def test_shrinking_ends_after_the_runs_it_may_have() -> None:
    shrinker = Shrinker(recorded([3] * 50), lambda indices: recorded(indices) if sum(indices) > 40 else None, 20)
    shrinker.shrink()
    assert shrinker.num_runs == 20


class Named(Exception):
    """A property that does not hold."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.property = name


def test_shrinking_does_not_slip_from_one_property_to_another() -> None:
    class Picky(Case):
        def at_rest(self) -> None:
            num_deviations = len(self.system.choices.deviations())
            if num_deviations:
                raise Named("many" if num_deviations >= 3 else "few")

    letters: Letters = (("a", Note("a", to("x", "x"))), ("b", Note("b", to("x"))))
    failure = explore(lambda source: Picky(writing("abx", letters, set())(source).system), RandomWalk(1), 50).failure
    assert failure is not None
    assert str(failure.error) == "many"
    assert str(failure.shrunk_error) == "many"
    assert len(failure.shrunk.deviations()) == 3


def test_a_drawn_schedule_deviates_a_bounded_number_of_times_and_is_fair_between() -> None:
    class Data:
        """Draws deviations as often as it may, with a fair decision between."""

        def draw(self, strategy: Any, label: str) -> int:
            return 2 if label.startswith("fair") else 1

    drawn = Drawn(Data())  # type: ignore[arg-type]
    chosen = [drawn.choose(Kind.PICK, [option("a", "x"), option("b", "x")]) for _ in range(3 * MOST_DEVIATIONS)]
    assert chosen == [0, 1] * MOST_DEVIATIONS + [0] * MOST_DEVIATIONS


def test_a_guide_sees_so_many_labels_from_the_first_that_it_has_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Guide, "SIGHT", 2)
    three = [option(name, "x") for name in "abc"]
    guide = Guide(["gone", "b", "c", "a"])
    assert [guide.choose(Kind.NEXT, three) for _ in range(4)] == [1, 2, 0, 0]
    assert Guide(["gone", "gone", "c"]).choose(Kind.NEXT, three) == 0


PASSES: list[tuple[Any, list[list[int]]]] = [
    (Shrinker._without_deviations, [[0, 0, 0, 0], [0, 0, 0, 5], [0, 2, 0, 0]]),
    (Shrinker._without_decisions, [[], [0, 5], [0, 2], [2, 0, 5], [0, 0, 5], [0, 2, 5], [0, 2, 0]]),
    (Shrinker._with_lower_indices, [[0, 1, 0, 5], [0, 2, 0, 1], [0, 2, 0, 2], [0, 2, 0, 4]]),
    (
        Shrinker._without_one_and_shifted,
        [
            *([0, 0, *behind] for behind in ([0, 0, 5], [5], [0, 0, 0, 5], [], [0, 0, 0, 0, 5], [0, 0, 0, 0, 0, 5])),
            *([0, 2, 0, 0, *[0] * more] for more in (1, 0, 2, 0, 3, 4)),
        ],
    ),
]


@pytest.mark.parametrize(("candidates", "wanted"), PASSES, ids=lambda each: getattr(each, "__name__", ""))
def test_each_pass_of_the_shrinker_tries_what_is_a_little_more_boring(candidates: Any, wanted: list[list[int]]) -> None:
    assert list(candidates([0, 2, 0, 5])) == wanted


def test_sizes_are_halved_down_to_one_and_fair_ends_cut() -> None:
    assert [list(halves(size)) for size in (0, 1, 7, 8)] == [[], [1], [7, 3, 1], [8, 4, 2, 1]]
    assert [trimmed(each) for each in ([0, 1, 0, 0], [0, 0], [], [2])] == [[0, 1], [], [], [2]]
