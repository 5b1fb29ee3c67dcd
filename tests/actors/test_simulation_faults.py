"""Faults of the simulated runtime: each strikes as often as it may, and is named in the record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.choice import Choices, Diverged, Kind, Option, Replay
from pawl.actors.simulation.faults import Faults, InjectedCrash
from pawl.actors.simulation.network import all_wires
from pawl.actors.simulation.strategies.simple import Randomized, RandomWalk
from pawl.actors.simulation.system import SimulatedSystem
from tests.actors.conformance_base import Boom, CancelTimer, Crash, Journal, Relay, Say, Scribe, SetTimers
from tests.actors.runtime_doing import Doing, Number
from tests.actors.toys import Note, spawn_writers, to


class Wanting:
    """Fair, but takes the first option whose label begins with the next of the words wanted."""

    def __init__(self, *words: str) -> None:
        self.words = list(words)
        self.offered: set[str] = set()

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        self.offered.update(option.label for option in options)
        for index, option in enumerate(options):
            if self.words and option.label.startswith(self.words[0]):
                del self.words[0]
                return index
        return 0


def talkative(source: Any, **budgets: Any) -> tuple[SimulatedSystem, Journal]:
    """A scribe that may crash, with three things to say."""
    system = SimulatedSystem(source, faults=Faults(**budgets))
    journal = Journal()
    system.spawn(Scribe(journal), "scribe")
    for number in range(3):
        system.send("scribe", Say(number))
    system.start()
    return system, journal


@pytest.mark.parametrize(("moment", "handled"), [("before", []), ("after", [0])])
def test_an_actor_crashes_before_or_after_it_handles_a_message(moment: str, handled: list[int]) -> None:
    system, journal = talkative(Wanting(f"crash scribe {moment}"), crash=1)
    system.run()
    assert journal.numbers("scribe") == handled
    assert system.faults.struck == [f"crash scribe {moment} scribe<outside>scribe.DATA"]
    assert [type(failure.error) for failure in system.failures] == [InjectedCrash]
    assert len(system.dead_letters.recent()) == 3


def test_a_crash_after_a_handler_that_failed_is_one_failure() -> None:
    system, _ = talkative(Wanting("crash scribe after"), crash=1)
    system.send("scribe", Crash(1), Lane.CONTROL)
    system.run()
    assert [type(failure.error) for failure in system.failures] == [Boom]


def test_a_crash_planned_for_a_timer_that_was_cancelled_is_not_made_up_for() -> None:
    system = SimulatedSystem(Wanting("crash clock before clock<timer"), faults=Faults(crash=1))
    journal = Journal()
    system.spawn(Scribe(journal), "clock")
    for message in (SetTimers((0.0,)), CancelTimer(0)):
        system.send("clock", message, Lane.SYSTEM)
    system.send("clock", Say(7))
    system.start()
    system.run()
    assert system.faults.struck == ["crash clock before clock<timer"]
    assert journal.numbers("clock") == [7]


def test_an_actor_that_crashes_for_good_is_gone_for_its_watchers() -> None:
    system = SimulatedSystem(Wanting("crash peer before"), faults=Faults(crash=1))
    journal = Journal()
    for name in ("watcher", "peer"):
        system.spawn(Scribe(journal), name)
    system.watch("watcher", "peer")
    system.send("peer", Say(1))
    system.start()
    system.run()
    assert [what.name for what in journal.of("watcher") if hasattr(what, "reason")] == ["peer"]


def test_nothing_is_at_rest_before_its_watchers_have_heard_that_somebody_is_gone() -> None:
    system = SimulatedSystem(Wanting("crash peer before"), faults=Faults(crash=1))
    journal = Journal()
    for name in ("watcher", "peer"):
        system.spawn(Scribe(journal), name)
    system.watch("watcher", "peer")
    system.start()
    system.send("peer", Say(1))
    while not (heard := [what for what in journal.of("watcher") if hasattr(what, "reason")]):
        assert system.num_waiting() > 0
        system.step()
    assert ([what.name for what in heard], system.num_waiting()) == (["peer"], 0)


def test_only_actors_that_may_crash_are_made_to() -> None:
    source = Wanting()
    system, _ = talkative(source, crash=1, may_crash=["somebody else"])
    system.run()
    assert not any(label.startswith("crash") for label in source.offered)


@pytest.mark.parametrize("seed", range(10))
def test_faults_strike_as_often_as_they_may_and_no_more(seed: int) -> None:
    walk = RandomWalk(seed, fault_rate=0.5)
    system, journal = talkative(walk, crash=2, rush=1, late=1, jump=1, may_crash=["weak", "frail"])
    for name in ("weak", "frail"):
        system.spawn(Scribe(journal), name)
        for number in range(3):
            system.send(name, Say(number))
    for delay_s in (1.0, 2.0, 3.0):
        system.send("scribe", SetTimers((delay_s,)))
    system.run()
    kinds = [label.split()[0] for label in system.faults.struck]
    assert kinds.count("crash") <= 2
    assert max(kinds.count(kind) for kind in ("rush", "late", "jump")) <= 1
    assert len(kinds) >= 3
    assert [label for label in system.choices.labels if label.split()[0] in ("crash", "rush", "late", "jump")] == (
        system.faults.struck
    )
    assert {0, 1, 2} <= set(journal.numbers("scribe"))


OFFERED = {
    "crash": {
        *(f"crash {name} {moment} {name}<outside>{name}.DATA" for name in "ab" for moment in ("before", "after")),
        *(f"crash b {moment} {what}" for what in ("b<timer", "b<a>b.DATA") for moment in ("before", "after")),
    },
    **{kind: {f"{kind} {wire}.DATA" for wire in ("a>b", "outside>a", "outside>b")} for kind in ("lose", "double")},
    "rush": {"rush time"},
    "late": {"late time"},
    "jump": {"jump forward", "jump back"},
}


@pytest.mark.parametrize("kind", OFFERED)
def test_each_budget_offers_faults_of_its_kind_wherever_they_may_strike(kind: str) -> None:
    source = Wanting()
    system = SimulatedSystem(source, faults=Faults(**{kind: 1}), is_wire=all_wires)
    for name in "ab":
        system.spawn(Scribe(Journal()), name)
    system.send("a", Relay("b"))
    system.send("b", SetTimers((1.0,)))
    system.start()
    system.run()
    assert {label for label in source.offered if label.partition(" ")[0] in OFFERED} == OFFERED[kind]


def test_no_fault_is_offered_where_none_has_a_budget() -> None:
    source = Wanting()
    system, _ = talkative(source)
    system.send("scribe", SetTimers((1.0,)))
    system.run()
    assert not any(label.startswith(("crash", "lose", "double", "rush", "late", "jump")) for label in source.offered)


def between_processes(*words: str, wires: bool = True, **budgets: Any) -> tuple[str, Wanting]:
    """What x reads of the two messages of a, which lives in another process if `wires`."""
    source = Wanting(*words)
    system = SimulatedSystem(
        source, faults=Faults(**budgets), is_wire=lambda sender, receiver: wires and all_wires(sender, receiver)
    )
    writers = spawn_writers(system, "ax", (("a", Note("a", to("x", "x"))),))
    system.start()
    system.run()
    return writers["x"].written.replace("|", ""), source


def test_messages_are_lost_and_doubled_between_processes() -> None:
    assert between_processes()[0] == "a0a1"
    assert between_processes("lose a>x.DATA", lose=1)[0] == "a1"
    assert between_processes("lose a>x.DATA", "lose a>x.DATA", lose=2)[0] == ""
    assert between_processes("double a>x.DATA", double=1)[0] == "a0a0a1"
    assert between_processes("double a>x.DATA", "double a>x.DATA", double=2)[0] == "a0a0a0a1"


def test_a_doubled_message_takes_two_places_and_gives_both_back() -> None:
    source = Wanting("double a>x.DATA")
    system = SimulatedSystem(source, faults=Faults(double=1), is_wire=all_wires)
    spawn_writers(system, "ax", (("a", Note("a", to("x", "x"))),))
    system.start()
    system.run()
    (mailbox,) = (driver.cell.mailbox for driver in system.drivers if driver.owner == "x")
    assert (system.faults.struck, mailbox._coming) == (["double a>x.DATA"], 0)


def test_inside_a_process_no_message_is_lost_or_doubled() -> None:
    written, source = between_processes("lose", "double", wires=False, lose=1, double=1)
    assert written == "a0a1"
    assert not any(label.startswith(("lose", "double")) for label in source.offered)


def test_a_lost_message_gives_its_place_back() -> None:
    system = SimulatedSystem(
        Wanting("lose a>x.DATA"), faults=Faults(lose=1), is_wire=lambda sender, receiver: sender == "a"
    )
    writers = spawn_writers(system, "ax", (("a", Note("a", to("x"))),), {"x": 1})
    system.start()
    system.run()
    assert system.faults.struck == ["lose a>x.DATA"]
    assert writers["x"].written == ""
    assert system.send("a", Note("b", to("x")))
    system.run()
    assert writers["x"].written == "b0|"


def timed(*words: str, **budgets: Any) -> tuple[SimulatedSystem, Journal]:
    system = SimulatedSystem(Wanting(*words), faults=Faults(**budgets))
    journal = Journal()
    system.spawn(Scribe(journal), "clock")
    system.send("clock", SetTimers((1.0, 2.0)))
    system.start()
    return system, journal


def test_a_late_timer_comes_late_and_in_order() -> None:
    system, journal = timed("late time", late=1, late_s=5.0)
    assert system.run(lambda: journal.numbers("clock") == [0])
    assert system.now_s == 6.0
    system.run()
    assert journal.numbers("clock") == [0, 1]
    assert system.now_s == 6.0


def test_of_timers_that_are_late_together_the_earliest_due_comes_first() -> None:
    system = SimulatedSystem(Wanting("late time"), faults=Faults(late=1))
    journal = Journal()
    for name, delay_s in (("second", 2.0), ("first", 1.0)):
        system.spawn(Scribe(journal), name)
        system.send(name, SetTimers((delay_s,)))
    system.start()
    system.run()
    assert [who for who, what in journal.entries if isinstance(what, Say)] == ["first", "second"]


def test_time_may_pass_while_there_is_work() -> None:
    system, journal = timed("rush time", rush=1)
    assert system.run(lambda: bool(system.choices.labels) and "rush time" in system.choices.labels)
    assert system.now_s == 1.0
    assert journal.of("clock") == ["started"]


def test_time_never_goes_back_when_it_has_rushed_past_those_who_wait() -> None:
    system, _ = timed("clock<outside>clock.DATA", "rush time", "rush time", rush=2)
    system.spawn(Doing(lambda actor, message: actor.context.send("busy", message)), "busy")
    system.send("busy", Number(1))
    assert system.run(lambda: len(system.faults.struck) == 2)
    assert system.now_s == 2.0


@pytest.mark.parametrize(("what", "sign"), [("forward", 1), ("back", -1)])
def test_a_jump_moves_the_wall_clock_only(what: str, sign: int) -> None:
    straight, _ = timed()
    straight.run()
    system, journal = timed(f"jump {what}", jump=1, jump_s=100.0)
    system.run()
    assert system.now_s == straight.now_s == 2.0
    assert system.wall() - straight.wall() == sign * 100.0
    assert journal.numbers("clock") == [0, 1]


# ---- faults that a scenario asks for ----


def striking(source: Any, strike: int) -> tuple[SimulatedSystem, list[bool]]:
    """An actor that asks three times whether it fails."""
    system = SimulatedSystem(source, faults=Faults(strike=strike))
    struck: list[bool] = []
    system.spawn(Doing(lambda actor, message: struck.append(system.strikes("step"))), "worker")
    for value in range(3):
        system.send("worker", Number(value))
    system.start()
    return system, struck


def test_a_place_that_may_fail_fails_as_often_as_it_may() -> None:
    system, struck = striking(Wanting("strike step: yes", "strike step: yes"), 1)
    system.run()
    assert struck == [True, False, False]
    assert system.faults.struck == ["step"]
    assert system.choices.deviations()[0][2] == "strike step: yes"
    assert striking(Wanting("strike step: yes"), 0)[0].run() is False


def test_a_strike_is_replayed() -> None:
    first, struck = striking(RandomWalk(4, fault_rate=0.5), 2)
    first.run()
    assert any(struck)
    again, struck_again = striking(Replay(first.choices), 2)
    again.run()
    assert struck_again == struck


def test_a_replay_that_diverges_inside_a_handler_is_not_taken_for_a_failing_actor() -> None:
    choices = Choices()
    choices.add(Kind.STRIKE, 1, "strike elsewhere: yes")
    system, _ = striking(Replay(choices), 1)
    with pytest.raises(Diverged, match="elsewhere"):
        system.run()


def test_a_scenario_may_leave_a_value_to_the_schedule() -> None:
    class Last(Randomized):
        def pick(self, kind: Kind, options: Sequence[Option]) -> int:
            return len(options) - 1 if kind is Kind.PICK else 0

    def picks(source: Any) -> list[int]:
        system = SimulatedSystem(source)
        picked: list[int] = []

        def handle(actor: Doing, message: Any) -> None:
            picked.append(system.pick("size", ("1", "8", "64")))

        system.spawn(Doing(handle), "actor")
        system.send("actor", Number(1))
        system.start()
        system.run()
        return picked

    assert picks(Wanting()) == [0]
    assert picks(Last(1)) == [2]
    assert picks(Wanting("size: 8")) == [1]


@pytest.mark.parametrize("budgets", [{"crash": -1}, {"late_s": 0.0}, {"jump_s": -1.0}])
def test_budgets_that_make_no_sense_are_refused(budgets: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"budget|late_s"):
        Faults(**budgets)
