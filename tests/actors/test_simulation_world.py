"""Time, ends, asking and stopping in the simulated runtime."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.runtime.actor import Actor, Down, Overflow
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.simulation.choice import ChoiceSource, Diverged
from pawl.actors.simulation.driver import SimulatedDriver
from pawl.actors.simulation.endless import Endless, Stuck
from pawl.actors.simulation.exploration import ActorFailed, Case, NotDeterministic, Unfinished, drive, explore
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.strategies.drawn import Drawn
from pawl.actors.simulation.strategies.simple import Fair, RandomWalk
from pawl.actors.simulation.system import SimulatedSystem
from tests.actors.conformance_base import Crash, Journal, Say, Scribe, SetTimers
from tests.actors.runtime_doing import Doing, Number, ignore
from tests.actors.toys import Go, Letters, Note, Pass, spawn_writers, to, writing

# ---- time ----


class Clockwork(Actor):
    """Sets timers and writes down when they came: (number, due, now)."""

    accepts = Say | SetTimers

    def __init__(self) -> None:
        self.fired: list[tuple[int, float, float]] = []
        self.dues: list[float] = []

    def receive(self, message: Any) -> None:
        now = self.context.now()
        match message:
            case SetTimers(delays_s):
                for delay_s in delays_s:
                    self.context.after(delay_s, Say(len(self.dues)))
                    self.dues.append(now + delay_s)
            case Say(number):
                self.fired.append((number, self.dues[number], now))


def clockwork(source: ChoiceSource, delays_s: tuple[float, ...], **options: Any) -> tuple[SimulatedSystem, Clockwork]:
    """One such actor that was told to set timers, and one that has work for as long as it lives."""
    system = SimulatedSystem(source, **options)
    clock = Clockwork()
    system.spawn(clock, "clock")
    system.send("clock", SetTimers(delays_s))
    system.start()
    return system, clock


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 1.0, 7.5]), min_size=1, max_size=6), st.integers(0, 3))
def test_timers_come_exactly_in_time_when_nothing_else_is_to_do(delays_s: list[float], seed: int) -> None:
    system, clock = clockwork(RandomWalk(seed), tuple(delays_s))
    system.run()
    assert [(due, number) for number, due, _ in clock.fired] == sorted(
        (due, number) for number, due in enumerate(clock.dues)
    )
    assert all(due == now for _, due, now in clock.fired)
    assert system.now_s == max(delays_s)


@given(st.data())
def test_timers_are_late_but_never_early_when_the_world_is_slow(data: st.DataObject) -> None:
    faults = Faults(rush=3, late=2, late_s=0.7)
    system, clock = clockwork(Drawn(data), (0.5, 1.0, 1.0, 2.0), faults=faults)
    times = [0.0]
    while system.step():
        times.append(system.now_s)
    assert times == sorted(times)
    assert sorted(number for number, _, _ in clock.fired) == [0, 1, 2, 3]
    assert all(now >= due for _, due, now in clock.fired)
    assert [number for number, _, _ in clock.fired] == [0, 1, 2, 3]


def test_the_clock_stands_while_somebody_has_work() -> None:
    for seed in range(20):
        system, _ = clockwork(RandomWalk(seed), (1.0,))
        system.spawn(Pass("pong"), "ping")
        system.spawn(Pass("ping"), "pong")
        system.send("ping", Go())
        with pytest.raises(Endless):
            system.run(max_steps=100)
        assert system.now_s == 0.0


def test_a_run_of_so_many_seconds_ends_then_with_all_that_was_due_by_then() -> None:
    system, clock = clockwork(Fair(), (0.5, 2.0, 3.0))
    assert not system.run(timeout_s=1.0)
    assert (system.now_s, [number for number, _, _ in clock.fired]) == (1.0, [0])
    assert not system.run(lambda: False, timeout_s=1.5)
    assert (system.now_s, [number for number, _, _ in clock.fired]) == (2.5, [0, 1])
    assert system.run(lambda: len(clock.fired) == 3, timeout_s=5.0)
    assert system.now_s == 3.0
    assert not system.run(timeout_s=4.0)
    assert system.now_s == 7.0, "nothing else is due"
    assert not system.run()
    assert system.now_s == 7.0


# ---- the end ----


def test_actors_that_hold_each_other_for_ever_are_found_stuck() -> None:
    """HOLD around a cycle, against the rule."""

    def scenario(source: ChoiceSource) -> Case:
        system = SimulatedSystem(source)
        letters: Letters = (
            *(("a", Note("a", to("b", "b"))) for _ in range(2)),
            *(("b", Note("b", to("a", "a"))) for _ in range(2)),
        )
        spawn_writers(system, "ab", letters, {"a": 2, "b": 2}, Overflow.HOLD)
        system.start()
        return Case(system)

    failure = explore(scenario, RandomWalk(1), 200).failure
    assert failure is not None
    assert isinstance(failure.error, Stuck)
    assert "held back by" in failure.dump
    assert "DATA ['Note'" in str(failure.shrunk_error)


def test_a_case_that_rests_before_it_is_done_is_unfinished() -> None:
    class Never(Case):
        def done(self) -> bool:
            return False

    with pytest.raises(Unfinished, match="not done"):
        drive(Never(writing("a", (("a", Note("a")),), set())(Fair()).system))


@pytest.mark.parametrize("error", [Diverged(0, "next", "a", ["b"]), NotDeterministic(0, ["a"], ["b"])])
def test_a_run_that_cannot_be_repeated_is_no_counterexample(error: Exception) -> None:
    class Breaks(Case):
        def stepped(self) -> None:
            raise error

    with pytest.raises(type(error)):
        explore(lambda source: Breaks(writing("a", (("a", Note("a")),), set())(source).system), Fair(), 1)


def test_word_of_an_end_that_comes_after_the_end_of_who_watches_is_a_dead_letter() -> None:
    journal, system = Journal(), SimulatedSystem(Fair())
    for name in ("watcher", "watched"):
        system.spawn(Scribe(journal), name)
    system.watch("watcher", "watched")
    system.send("watched", Crash(1))
    system.start()
    assert system.run(lambda: system.network.num_notices == 1)
    (watcher,) = (driver.cell for driver in system.drivers if driver.owner == "watcher")
    watcher.vanish("killed")
    system.run()
    ((to, sender, message, reason),) = [msgspec.structs.astuple(each) for each in system.dead_letters.recent()][-1:]
    assert (to, sender, message, reason) == (
        "watcher",
        "watched",
        Down("watched", "failed: Boom"),
        Reason.RECEIVER_GONE,
    )
    assert system.network.num_notices == 0


def test_a_failure_that_nobody_planned_is_reported() -> None:
    def scenario(source: ChoiceSource) -> Case:
        system = SimulatedSystem(source)
        journal = Journal()
        system.spawn(Scribe(journal), "weak")
        system.send("weak", Crash(3))
        system.start()
        return Case(system)

    failure = explore(scenario, RandomWalk(1), 1).failure
    assert failure is not None
    assert isinstance(failure.error, ActorFailed)
    assert str(failure.error).splitlines()[0] == "weak: Boom('crash 3')"


def test_a_violation_reported_in_a_handler_ends_the_run_there() -> None:
    def handle(actor: Doing, message: Any) -> None:
        if message.value == 2:
            system.report(ValueError("two"))

    system = SimulatedSystem(Fair())
    system.spawn(Doing(handle), "actor")
    for value in range(5):
        system.send("actor", Number(value))
    system.start()
    with pytest.raises(ValueError, match="two"):
        system.run()
    assert system.num_deliveries == 3


# ---- stopping ----


@pytest.mark.parametrize("seed", range(10))
def test_a_stop_begun_in_a_handler_goes_on_by_itself(seed: int) -> None:
    system = SimulatedSystem(RandomWalk(seed))
    first, second = Doing(lambda actor, message: system.begin_stop(["first"])), Doing(ignore)
    system.spawn(second, "second")
    system.spawn(first, "first")
    system.send("first", Number(1))
    system.start()
    system.run()
    assert system.wait(0.0)
    assert first.was_stopped.is_set()
    assert second.was_stopped.is_set()


def test_blocking_calls_are_refused_inside_a_step() -> None:
    refused: list[str] = []

    def stop(actor: Doing, message: Any) -> None:
        try:
            system.stop()
        except RuntimeError as error:
            refused.append(str(error))

    system = SimulatedSystem(Fair())
    system.spawn(Doing(stop), "actor")
    system.send("actor", Number(1))
    system.start()
    system.run()
    assert len(refused) == 1


def test_actors_that_do_not_end_in_time_are_cut_off_when_the_time_is_over() -> None:
    system = SimulatedSystem(Fair())
    letters: Letters = (
        *(("a", Note("a", to("b", "b"))) for _ in range(2)),
        *(("b", Note("b", to("a", "a"))) for _ in range(2)),
    )
    spawn_writers(system, "ab", letters, {"a": 2, "b": 2}, Overflow.HOLD)
    system.start()
    assert system.run(lambda: not system.network.ready)
    assert system.stop(timeout_s=4.0) == ()
    assert system.now_s == 4.0
    assert {letter.reason for letter in system.dead_letters.recent()} == {Reason.RECEIVER_GONE}


@pytest.mark.parametrize("seed", range(10))
def test_an_actor_takes_nothing_and_does_not_stop_in_the_middle_of_a_handler(seed: int) -> None:
    system = SimulatedSystem(RandomWalk(seed))
    letters: Letters = tuple((name, Note(name, to("x", "y", "x"))) for name in "abab")
    letters += tuple(("c", Note("c", to("a", "b"))) for _ in range(4))
    spawn_writers(system, "abcxy", letters, {"x": 3, "y": 3}, Overflow.HOLD)
    system.start()
    for count in range(1000):
        if count == seed * 3:
            system.begin_stop()
        if not system.step():
            break
        sending = {outbox.owner for outbox in system.network.outboxes.values() if outbox.envelopes}
        for event in system.network.ready:
            if isinstance(event, SimulatedDriver):
                assert event.owner not in sending
                assert not event.label.endswith(" rests"), "a turn in which there is nothing to do"
    assert system.wait(0.0)
