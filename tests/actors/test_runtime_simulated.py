"""The simulated runtime: the conformance suite under several sources of choices, and what only it promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.runtime.actor import Actor, Lane, Overflow
from actors.runtime.ask import Unanswered
from actors.runtime.choice import ChoiceSource, Footprint, Kind, Option
from actors.runtime.exploration import ActorFailed, Case, Unfinished, drive, explore, silence
from actors.runtime.faults import Faults
from actors.runtime.local import OUTSIDE, OnFailure
from actors.runtime.simulated import Endless, SimulatedSystem, Stuck
from actors.runtime.strategies.drawn import Drawn
from actors.runtime.strategies.exhaustive import Exhaustive
from actors.runtime.strategies.pct import PCT
from actors.runtime.strategies.races import Happened, Order
from actors.runtime.strategies.simple import Fair, RandomWalk
from actors.runtime.supervision import DeadLetter, Reason, Restart
from actors.runtime.transit import IsWire, all_wires, no_wires
from tests.actors.conformance import RuntimeConformance
from tests.actors.conformance_base import Crash, Journal, Say, Scribe, SetTimers
from tests.actors.runtime_doing import Answer, Doing, Number, Question, ignore
from tests.actors.toys import Go, Letters, Note, Pass, Writer, spawn_writers, to, writing


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Actors fail on purpose here, some thousand times; what they log is dropped."""
    with silence():
        yield


class TestFair(RuntimeConformance):
    """Every choice is the fair one."""

    options: ClassVar[dict[str, Any]] = {}
    simulated: list[SimulatedSystem]

    def source(self) -> ChoiceSource:
        return Fair()

    def setup_method(self) -> None:
        super().setup_method()
        self.simulated = []

    def make_system(
        self,
        *,
        seed: int = 0,
        on_failure: OnFailure | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> SimulatedSystem:
        system = SimulatedSystem(
            self.source(), seed, on_failure=on_failure, on_dead_letter=on_dead_letter, **self.options
        )
        self.simulated.append(system)
        return system

    def run_until(self, condition: Callable[[], bool]) -> None:
        assert self.simulated[-1].run(condition), self.journal.entries[-20:]


class TestHandlersWhole(TestFair):
    """No handler is interrupted."""

    options: ClassVar[dict[str, Any]] = {"preempt": False}


class TestAnyOrder(TestFair):
    """Every choice is a coin's."""

    def source(self) -> ChoiceSource:
        return RandomWalk(1)


class TestFewPreemptions(TestFair):
    """Priorities decide: some actors starve for as long as others have work."""

    def source(self) -> ChoiceSource:
        strategy = PCT(2)
        strategy.begin()
        return strategy


class TestBetweenProcesses(TestFair):
    """Every actor in a process of its own; what is sent from outside is there at once."""

    options: ClassVar[dict[str, Any]] = {"is_wire": lambda sender, receiver: sender != OUTSIDE}

    def source(self) -> ChoiceSource:
        return RandomWalk(3)


# ---- what holds in every schedule, and what does not ----


def written_by(name: str, names: str, letters: Letters, **options: Any) -> set[str]:
    """All that the writer `name` may have written at rest, without the moments when it settled."""
    outcomes: set[tuple[str, ...]] = set()
    result = explore(writing(names, letters, outcomes, **options), Exhaustive(), 20_000)
    assert result.exhausted
    return {outcome[names.index(name)].replace("|", "") for outcome in outcomes}


def test_what_an_actor_causes_comes_after_what_it_sent_before() -> None:
    """a writes to x, then makes b write to x: in one process x reads them in this order, between processes not."""
    letters: Letters = (("a", Note("a", to("x", "b"))),)

    class PassingOn(Writer):
        def receive(self, message: Any) -> None:
            super().receive(message)
            if self.context.name == "b":
                self.context.send("x", Note("b"))

    def orders(**options: Any) -> set[str]:
        seen: set[str] = set()

        class Look(Case):
            def at_rest(self) -> None:
                seen.add(writers["x"].written.replace("|", ""))

        writers: dict[str, Writer] = {}

        def scenario(source: ChoiceSource) -> Case:
            system = SimulatedSystem(source, **options)
            for name in "abx":
                writers[name] = PassingOn()
                system.spawn(writers[name], name)
            for name, note in letters:
                system.send(name, note)
            system.start()
            return Look(system)

        assert explore(scenario, Exhaustive(), 5000).exhausted
        return seen

    assert orders() == {"a0b"}
    assert orders(is_wire=all_wires) == {"a0b", "ba0"}


def test_anything_may_happen_between_two_sends_of_a_handler() -> None:
    """a tells y, then x; y may have told x before a does. Handlers that are whole hide it."""
    letters: Letters = (("a", Note("a", to("x", "x"))), ("y", Note("y", to("x"))))
    assert written_by("x", "axy", letters, preempt=False) == {"a0a1y0", "y0a0a1"}
    assert written_by("x", "axy", letters) == {"a0a1y0", "y0a0a1", "a0y0a1"}


def test_order_along_an_edge_holds_between_processes_too() -> None:
    letters: Letters = (("a", Note("a", (*to("x", "x"), *to("x", lane=Lane.CONTROL)))),)
    assert written_by("x", "ax", letters, is_wire=all_wires) == {"a0a1a2", "a0a2a1", "a2a0a1"}


class Watching:
    """Random choices; remembers the label of the event that happens next."""

    def __init__(self, seed: int) -> None:
        self.walk = RandomWalk(seed)
        self.label = ""
        self.footprints: list[tuple[str, Footprint]] = []

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        index = self.walk.choose(kind, options)
        self.label = options[index].label
        return index

    def executed(self, footprint: Footprint) -> None:
        self.footprints.append((self.label, footprint))


@pytest.mark.parametrize("seed", range(5))
def test_labels_say_what_happens(seed: int) -> None:
    letters: Letters = (
        ("a", Note("a", (*to("b", "b"), *to("b", lane=Lane.CONTROL)))),
        ("b", Note("b", to("a", "b", lane=Lane.SYSTEM))),
    )
    source = Watching(seed)
    system = SimulatedSystem(source)
    happened: list[tuple[str, str]] = []
    system.on_delivery = lambda name, message: happened.append((source.label, f"{name} {message.letter}"))
    spawn_writers(system, "ab", letters)
    system.start()
    system.run()
    assert sorted(happened) == sorted(
        [
            ("a<outside>a.DATA", "a a"),
            ("a<b>a.SYSTEM", "a b0"),
            ("b<a>b.CONTROL", "b a2"),
            ("b<a>b.DATA", "b a0"),
            ("b<a>b.DATA", "b a1"),
            ("b<b>b.SYSTEM", "b b1"),
            ("b<outside>b.DATA", "b b"),
        ]
    )


@pytest.mark.parametrize("wires", [all_wires, no_wires])
def test_a_message_is_sent_before_it_arrives_and_arrives_before_it_is_taken(wires: IsWire) -> None:
    source = Watching(1)
    system = SimulatedSystem(source, is_wire=lambda sender, receiver: sender == "a" and wires(sender, receiver))
    spawn_writers(system, "ax", (("a", Note("a", to("x"))), ("a", Note("b", to("x")))))
    system.start()
    system.run()
    labels = [label for label, _ in source.footprints]
    order = Order([Happened(label, footprint) for label, footprint in source.footprints])
    sent, arrived, taken = (
        [at for at, label in enumerate(labels) if label == wanted]
        for wanted in ("a<outside>a.DATA", "a>x.DATA", "x<a>x.DATA")
    )
    for at in range(2):
        assert order.depends(arrived[at], sent[at])
        assert order.depends(taken[at], arrived[at])
    assert order.depends(sent[1], labels.index("a begins"))
    # On a wire the sender goes on, and only then.
    assert order.depends(sent[1], arrived[0]) == (wires is no_wires)
    assert not order.depends(arrived[0], sent[1])


def test_the_same_choices_give_the_same_run() -> None:
    def run(seed: int) -> tuple[Any, ...]:
        walk = RandomWalk(seed)
        walk.begin()
        system = SimulatedSystem(walk, seed=7)
        deliveries: list[Any] = []
        system.on_delivery = lambda name, message: deliveries.append((name, message, system.now_s))
        spawn_writers(system, "abx", (("a", Note("a", to("x", "b"))), ("b", Note("b", to("x", "a")))))
        system.start()
        system.run()
        return deliveries, system.choices.labels, system.choices.indices, system.random.getrandbits(64)

    assert run(1) == run(1)
    assert run(1)[:3] != run(2)[:3]


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
    system.run()
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


def test_a_failure_that_nobody_planned_is_reported_even_if_the_actor_is_restarted() -> None:
    def scenario(source: ChoiceSource) -> Case:
        system = SimulatedSystem(source)
        journal = Journal()
        system.spawn(Scribe(journal), "weak", restart=Restart(factory=lambda: Scribe(journal)))
        system.send("weak", Crash(3))
        system.start()
        return Case(system)

    failure = explore(scenario, RandomWalk(1), 1).failure
    assert failure is not None
    assert isinstance(failure.error, ActorFailed)
    assert str(failure.error) == "weak: Boom('crash 3')"


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


# ---- asking and stopping ----


def test_call_gives_the_reply_or_the_time_limit_in_virtual_time() -> None:
    def answer(actor: Doing, message: Question) -> None:
        actor.context.after(2.0, message)
        actor.handle = lambda actor, message: actor.context.send(message.reply_to, Answer(message.ticket, "late"))

    system = SimulatedSystem(Fair())
    system.spawn(Doing(answer), "slow")
    system.spawn(Doing(lambda actor, message: actor.context.send(message.reply_to, Answer(message.ticket, "now"))), "x")
    system.start()
    assert system.call("x", Question, 1.0).text == "now"
    with pytest.raises(TimeoutError):
        system.call("slow", Question, 1.5)
    assert system.now_s == 1.5
    system.run()
    assert system.now_s == 2.0
    assert [letter.reason for letter in system.dead_letters.recent()] == [Reason.LATE_REPLY]
    with pytest.raises(Unanswered):
        system.call("nobody", Question, 1.0)


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


def test_a_restart_waits_out_its_backoff_and_a_stop_does_not_wait_for_it() -> None:
    system = SimulatedSystem(Fair())
    journal = Journal()
    armed = iter((True, False))
    restart = Restart(factory=lambda: Scribe(journal, lambda _: next(armed)), backoff_s=3.0)
    system.spawn(Scribe(journal, lambda _: next(armed)), "weak", restart=restart)
    system.send("weak", Crash(1))
    system.send("weak", Say(2))
    system.start()
    assert system.run(lambda: bool(journal.numbers("weak")))
    assert system.now_s == 3.0
