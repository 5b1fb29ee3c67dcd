"""What strategies find, how soon, and what becomes of it: a lost update between two actors, planted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pawl.actors.simulation.choice import Choices, ChoiceSource, Diverged, Kind, Option
from pawl.actors.simulation.endless import Endless
from pawl.actors.simulation.exploration import Case, drive, explore, replay
from pawl.actors.simulation.shrinking import Shrinker, cost
from pawl.actors.simulation.strategies.coverage import CoverageGuided
from pawl.actors.simulation.strategies.drawn import Drawn
from pawl.actors.simulation.strategies.exhaustive import Exhaustive, NotDeterministic
from pawl.actors.simulation.strategies.pct import PCT
from pawl.actors.simulation.strategies.pos import POS
from pawl.actors.simulation.strategies.simple import Fair, RandomWalk, Strategy
from pawl.actors.simulation.system import SimulatedSystem
from tests.actors.toys import Go, LostUpdate, Note, Pass, lost_update, to, writing

SEEDED: list[Callable[[int], Strategy]] = [RandomWalk, PCT, POS, CoverageGuided]
SEEDS = range(8)


def schedules_to_find(make: Callable[[int], Strategy], limit: int) -> list[int]:
    """Number of the first failing schedule for each seed; every one must be found."""
    found = []
    for seed in SEEDS:
        failure = explore(lost_update, make(seed), limit, most_shrink_runs=0).failure
        assert failure is not None, f"{make(seed).name} with seed {seed} found nothing in {limit} schedules"
        found.append(failure.schedule)
    return found


def test_other_schedules_have_another_digest_and_the_same_have_the_same() -> None:
    digests = [explore(lost_update, RandomWalk(seed), 3, most_shrink_runs=0).digest for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_the_fair_schedule_does_not_find_a_lost_update() -> None:
    result = explore(lost_update, Fair(), schedules=100)
    assert (result.schedules, result.failure, result.exhausted) == (1, None, False)


@pytest.mark.parametrize(
    ("make", "limit"),
    [(RandomWalk, 100), (PCT, 100), (POS, 50), (CoverageGuided, 400), (lambda _: Exhaustive(), 50)],
    ids=["random", "pct", "pos", "coverage", "exhaustive"],
)
def test_a_lost_update_is_found_within_a_stated_number_of_schedules(
    make: Callable[[int], Strategy], limit: int
) -> None:
    schedules_to_find(make, limit)


def test_partial_order_sampling_needs_fewer_schedules_than_a_random_walk() -> None:
    assert sum(schedules_to_find(POS, 50)) < sum(schedules_to_find(RandomWalk, 100))


@pytest.mark.parametrize("make", [*SEEDED, lambda _: Exhaustive()])
def test_a_failure_replays_exactly_and_shrinks(make: Callable[[int], Strategy], tmp_path: Path) -> None:
    failure = explore(lost_update, make(3), 500).failure
    assert failure is not None
    for choices in (failure.choices, failure.shrunk):
        path = tmp_path / "schedule.json"
        choices.save(path)
        kept = Choices.load(path)
        assert kept == choices
        with pytest.raises(AssertionError, match="an update is lost: 1"):
            replay(lost_update, kept)
    assert 1 <= cost(failure.shrunk)[0] <= 14
    assert cost(failure.shrunk) <= cost(failure.choices)
    assert "an update is lost" in str(failure)
    assert "store: running" in failure.dump


def test_a_shrunk_schedule_has_no_deviation_to_spare() -> None:
    failure = explore(lost_update, RandomWalk(5), 500).failure
    assert failure is not None
    attempted = []

    def attempt(indices: object) -> None:
        attempted.append(indices)

    Shrinker(failure.shrunk, attempt).shrink()
    assert len(attempted) >= cost(failure.shrunk)[0]
    again = explore(lost_update, RandomWalk(5), 500).failure
    assert again is not None
    assert again.shrunk == failure.shrunk


@pytest.mark.parametrize("make", SEEDED)
def test_the_same_seed_gives_the_same_schedules_and_another_seed_others(make: Callable[[int], Strategy]) -> None:
    def trace(seed: int) -> list[tuple[list[int], list[str]]]:
        strategy = make(seed)
        runs = []
        ended = strategy.ended

        def keep(choices: Choices) -> None:
            runs.append((choices.indices, choices.labels))
            ended(choices)

        strategy.ended = keep  # type: ignore[method-assign]
        explore(writing("abx", TWO_TO_ONE, set()), strategy, 20)
        return runs

    first = trace(1)
    assert len(first) == 20
    assert first == trace(1)
    assert first != trace(2)


TWO_TO_ONE = (("a", Note("a", to("x"))), ("b", Note("b", to("x"))))


def test_schedules_are_counted_once_if_they_are_the_same() -> None:
    result = explore(writing("abx", TWO_TO_ONE, set()), RandomWalk(1), 300)
    assert result.schedules == 300
    assert 50 < result.distinct < 300
    assert result.deliveries == 300 * 4


@given(st.data())
@settings(max_examples=60)
def test_drawn_schedules_replay_exactly(data: st.DataObject) -> None:
    case = lost_update(Drawn(data))
    try:
        drive(case)
    except AssertionError:
        with pytest.raises(AssertionError, match="an update is lost"):
            replay(lost_update, case.system.choices)
    else:
        assert isinstance(replay(lost_update, case.system.choices), LostUpdate)


def test_hypothesis_finds_a_lost_update_and_shrinks_it() -> None:
    failing: list[Choices] = []

    @settings(
        max_examples=500,
        database=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def find(data: st.DataObject) -> None:
        case = lost_update(Drawn(data))
        try:
            drive(case)
        except AssertionError:
            failing.append(case.system.choices)
            raise

    with pytest.raises(AssertionError, match="an update is lost"):
        find()
    first, last = failing[0], failing[-1]
    assert cost(last) < cost(first)
    assert cost(last)[0] <= 8


def test_a_replay_that_does_not_fit_says_where_and_what_is_there() -> None:
    choices = Choices()
    case = lost_update(Fair())
    drive(case)
    for kind, index, label in zip(
        case.system.choices.kinds, case.system.choices.indices, case.system.choices.labels, strict=True
    ):
        choices.add(kind, index, label)
    choices.labels[7] = "nobody begins"
    with pytest.raises(Diverged) as raised:
        replay(lost_update, choices)
    assert raised.value.position == 7
    assert raised.value.wanted == "nobody begins"
    assert "store settles" not in raised.value.found
    assert len(raised.value.found) >= 2


def test_a_replay_on_another_scenario_diverges() -> None:
    failure = explore(lost_update, RandomWalk(1), 100).failure
    assert failure is not None
    with pytest.raises(Diverged):
        replay(lambda source: lost_update(source, hops=2), failure.choices)


@given(
    st.lists(st.tuples(st.sampled_from(Kind), st.integers(0, 9), st.text(max_size=5))),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5)),
)
def test_choices_are_read_back_as_they_were_saved(rows: list[tuple[Kind, int, str]], facts: dict[str, str]) -> None:
    choices = Choices(facts)
    for row in rows:
        choices.add(*row)
    again = Choices.decode(choices.encode())
    assert again == choices
    assert again.facts == facts


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "truncated"),
        (b"{}", "missing required field"),
        (b"[1]", "Expected `object`"),
        (b"\xff", "malformed"),
        (Choices().encode().replace(b'"format":1', b'"format":2'), "format 2"),
    ],
)
def test_what_is_no_record_of_choices_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Choices.decode(data)


def test_a_record_with_a_decision_that_has_no_label_is_refused() -> None:
    choices = Choices()
    choices.add(Kind.NEXT, 1, "a begins")
    damaged = choices.encode().replace(b'"decisions":[0]', b'"decisions":[1]')
    assert damaged != choices.encode()
    with pytest.raises(ValueError, match="no label"):
        Choices.decode(damaged)


def test_a_scenario_that_depends_on_more_than_its_choices_is_found_out() -> None:
    runs = iter(range(1000))

    def scenario(source: ChoiceSource) -> LostUpdate:
        return lost_update(source, hops=2 + next(runs) // 9 % 2)

    with pytest.raises((NotDeterministic, Diverged)):
        explore(scenario, FairAgain(), 20, confirm_every=1)


class FairAgain(Fair):
    """The fair schedule as often as it is asked for."""

    def begin(self) -> bool:
        return True


def test_confirming_compares_states_not_only_choices() -> None:
    runs = iter(range(1000))

    class Shaky(LostUpdate):
        def state(self) -> object:
            return next(runs)

    def scenario(source: ChoiceSource) -> Case:
        case = lost_update(source)
        return Shaky(case.system, case.store)

    explore(scenario, Fair(), 1)
    with pytest.raises(NotDeterministic):
        explore(scenario, Fair(), 1, confirm_every=1)


def test_confirming_compares_how_far_runs_go_and_what_comes_of_them() -> None:
    ends, outcomes = iter([False, True]), iter([b"one", b"another"])

    class Shorter(LostUpdate):
        """Is done at once when it is run again."""

        def done(self) -> bool | None:
            return self.ended

        ended = False

    class Other(LostUpdate):
        def outcome(self) -> bytes:
            return next(outcomes)

    def shorter(source: ChoiceSource) -> Case:
        case = lost_update(source)
        made = Shorter(case.system, case.store)
        made.ended = next(ends)
        return made

    def other(source: ChoiceSource) -> Case:
        case = lost_update(source)
        return Other(case.system, case.store)

    with pytest.raises(NotDeterministic, match="steps") as found:
        explore(shorter, Fair(), 1, confirm_every=1)
    assert found.value.before != found.value.now
    with pytest.raises(NotDeterministic, match="one outcome"):
        explore(other, Fair(), 1, confirm_every=1)


def test_an_exhaustive_search_of_what_depends_on_more_than_its_choices_says_so() -> None:
    runs = iter(range(1000))

    def scenario(source: ChoiceSource) -> Case:
        other = "bc"[next(runs) % 2]
        letters = [(name, Note(name, to("x"))) for name in ("a", other)]
        return writing(f"a{other}x", letters, set())(source)

    with pytest.raises(NotDeterministic) as found:
        explore(scenario, Exhaustive(), 20)
    assert found.value.before != found.value.now


def test_a_strategy_of_ones_own_goes_on_for_ever_unless_it_says_otherwise() -> None:
    class First(Strategy):
        def choose(self, kind: Kind, options: Sequence[Option]) -> int:
            return 0

    assert explore(lost_update, First(), 5).schedules == 5


def test_a_run_that_never_rests_is_a_failure_and_keeps_its_choices() -> None:
    def scenario(source: ChoiceSource) -> Case:
        system = SimulatedSystem(source)
        system.spawn(Pass("b"), "a")
        system.spawn(Pass("a"), "b")
        system.send("a", Go())
        system.start()
        return Case(system)

    failure = explore(scenario, RandomWalk(1), 5, max_steps=200, most_shrink_runs=5).failure
    assert failure is not None
    assert isinstance(failure.error, Endless)
    assert "not at rest after 200 steps" in str(failure.error)
    assert "a: running" in failure.dump
