"""Whole processes of a simulated run: what is heard of one that dies, freezes or is cut off, and what it hears."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pawl.actors.runtime.actor import Down
from pawl.actors.simulation.choice import Choices, Kind, Option, Replay
from pawl.actors.simulation.faults import Faults, InjectedCrash
from pawl.actors.simulation.processes import Processes
from pawl.actors.simulation.strategies.simple import RandomWalk
from pawl.actors.simulation.system import SimulatedSystem
from tests.actors.conformance_base import Journal, Relay, Say, Scribe

LOST = "far is taken for lost"


class Wanting:
    """Fair, but takes each of the options that are named as soon as it is there."""

    def __init__(self, *words: str, last: str = "") -> None:
        """`last`: nothing whose label begins so happens while there is anything else."""
        self.words = list(words)
        self.last = last

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        for index, option in enumerate(options):
            if option.label.endswith(tuple(self.words)):
                self.words = [word for word in self.words if not option.label.endswith(word)]
                return index
        waits = [self.last != "" and option.label.startswith(self.last) for option in options]
        return waits.index(False) if False in waits else 0


def two_processes(source: Any, **budgets: int) -> tuple[SimulatedSystem, Journal]:
    """`near` watches `far`, who is in another process and is told to say three things to it, once it runs.
    `third` is in yet another one."""
    system, journal = SimulatedSystem(source, faults=Faults(**budgets), is_wire=_crosses), Journal()
    for name in ("near", "far", "third"):
        system.spawn(Scribe(journal), name)
    system.watch("near", "far")
    system.processes = Processes(system, str, "near")
    system.processes.mortal = lambda: ["far"]
    system.start()
    return system, journal


def _crosses(sender: str, receiver: str) -> bool:
    return sender != receiver and "outside" not in (sender, receiver)


def heard(journal: Journal) -> list[int | str]:
    """What `near` has heard: numbers, and the name of who is gone."""
    words = [what for what in journal.of("near") if isinstance(what, Say | Down)]
    return [what.name if isinstance(what, Down) else what.number for what in words]


@pytest.mark.parametrize("count", [0, 1, 3])
def test_of_a_killed_process_a_beginning_of_its_last_words_is_heard_and_then_that_it_is_gone(count: int) -> None:
    source = Wanting(last="far>near")
    system, journal = two_processes(source, kill=1)
    system.send("far", Relay("near", 3))
    system.run(lambda: journal.of("far").count("sent") == 3)
    source.words += ["kill far", LOST, f"{count} messages"]
    system.run()
    assert heard(journal) == [*range(count), "far"]
    assert [(failure.name, type(failure.error)) for failure in system.failures] == [("far", InjectedCrash)]
    assert not any(str(what).startswith("stopped") for what in journal.of("far")), "nothing of it runs any more"


def test_who_was_about_to_do_something_in_a_frozen_process_does_it_afterwards() -> None:
    done: list[int] = []

    class Noting(Wanting):
        def choose(self, kind: Kind, options: Sequence[Option]) -> int:
            labels = [option.label for option in options]
            if "far goes on" in labels and all(label.startswith(self.last) for label in labels):
                done.append(journal.of("far").count("sent"))
                return labels.index("far goes on")
            return super().choose(kind, options)

    source = Noting()
    system, journal = two_processes(source, freeze=1)
    system.run()
    system.send("far", Relay("near", 3))  # it is ready to take this
    source.words, source.last = ["freeze far"], "far "
    system.run()
    assert (done, heard(journal)) == ([0], [0, 1, 2])


def test_what_is_said_to_a_killed_process_is_taken_until_somebody_notices() -> None:
    system, journal = two_processes(Wanting("kill far", last=LOST), kill=1)
    system.send("near", Relay("far", 1))
    system.run(lambda: "sent" in journal.of("near"))
    system.run()
    system.send("near", Relay("far", 1))
    system.run()
    assert [what for what in journal.of("near") if what in ("sent", "refused")] == ["sent", "refused"]
    assert journal.numbers("far") == []


def test_a_process_that_is_frozen_does_nothing_and_then_all_of_it() -> None:
    system, journal = two_processes(Wanting("freeze far", "far goes on"), freeze=1)
    system.send("far", Relay("near", 3))
    system.run()
    assert heard(journal) == [0, 1, 2]
    assert not system.failures


@pytest.mark.parametrize(("budget", "begins"), [("freeze", "freeze far"), ("part", "part far")])
def test_a_process_that_was_given_up_goes_on_and_nobody_hears_it(budget: str, begins: str) -> None:
    system, journal = two_processes(Wanting(begins, LOST, "0 messages"), **{budget: 1})
    system.send("far", Relay("near", 3))
    system.run()
    assert heard(journal) == ["far"]
    assert journal.of("far").count("sent") == 3
    assert [type(failure.error) for failure in system.failures] == [InjectedCrash]
    system.send("near", Relay("far", 1))
    system.run()
    assert journal.of("near")[-2] == "refused"
    system.send("third", Relay("far", 1))
    system.run()
    assert "sent" in journal.of("third"), "only the first process has given it up"
    assert journal.numbers("far") == [0]


def test_a_process_that_is_reached_again_has_lost_nothing() -> None:
    system, journal = two_processes(Wanting("part far", "far is reached again"), part=1)
    for to, other in (("far", "near"), ("near", "far")):
        system.send(to, Relay(other, 3))
    system.run()
    assert heard(journal) == [0, 1, 2] == journal.numbers("far")
    assert not system.failures


@pytest.mark.parametrize("budget", ["kill", "freeze", "part"])
def test_whatever_the_schedule_words_are_heard_in_order_without_a_gap_and_none_after_the_end(budget: str) -> None:
    ends = set()
    for seed in range(30):
        walk = RandomWalk(seed, fault_rate=0.2)
        walk.begin()
        system, journal = two_processes(walk, **{budget: 2})
        for to, other in (("far", "near"), ("near", "far")):
            system.send(to, Relay(other, 4))
        system.run()
        words = heard(journal)
        gone = words[-1:] == ["far"]
        numbers = words[: len(words) - gone]
        assert numbers == list(range(len(numbers))), words
        assert gone or len(numbers) == 4, words
        assert journal.numbers("far") == list(range(len(journal.numbers("far"))))
        ends.add(gone)
        again, other_journal = two_processes(Replay(Choices.decode(system.choices.encode())), **{budget: 2})
        for to, other in (("far", "near"), ("near", "far")):
            again.send(to, Relay(other, 4))
        again.run()
        assert other_journal.entries == journal.entries
    assert True in ends
