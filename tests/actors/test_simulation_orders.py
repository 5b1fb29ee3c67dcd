"""What holds in every schedule of the simulated runtime, and what does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.simulation.choice import LINE, ChoiceSource, Footprint, Kind, Option
from pawl.actors.simulation.exploration import Case, explore
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.network import DownNotice, IsWire, all_wires, no_wires
from pawl.actors.simulation.strategies.exhaustive import Exhaustive
from pawl.actors.simulation.strategies.races import Happened, Order
from pawl.actors.simulation.strategies.simple import Fair, RandomWalk
from pawl.actors.simulation.system import SimulatedSystem
from tests.actors.conformance_base import Crash, Journal, Relay, Say, Scribe, SetTimers
from tests.actors.toys import Letters, Note, Writer, spawn_writers, to, writing


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


def test_labels_name_the_lane_also_when_data_has_waited_long_enough() -> None:
    source = Watching(1)
    system = SimulatedSystem(source)
    seen: list[str] = []

    def look(name: str, message: Any) -> None:
        assert source.label == f"x<outside>x.{message.letter}"
        seen.append(message.letter)

    system.on_delivery = look
    spawn_writers(system, "x", ())
    for lane in (Lane.DATA, *[Lane.CONTROL] * 20):
        system.send("x", Note(lane.name), lane)
    system.start()
    system.run()
    assert seen == ["CONTROL"] * 16 + ["DATA"] + ["CONTROL"] * 4


def test_a_down_that_is_due_is_named_before_what_came_later() -> None:
    source = Watching(1)
    system = SimulatedSystem(source)
    journal = Journal()
    labels: list[tuple[str, str]] = []
    system.on_delivery = lambda name, message: labels.append((source.label, type(message).__name__))
    for name in ("watcher", "peer"):
        system.spawn(Scribe(journal), name)
    system.watch("watcher", "peer")
    system.send("peer", Crash(1))
    system.start()
    system.run(lambda: "peer>watcher.down" in [label for label, _ in source.footprints])
    system.send("watcher", Say(1), Lane.SYSTEM)
    system.run()
    assert labels[1:] == [("watcher<peer>watcher.SYSTEM", "Down"), ("watcher<outside>watcher.SYSTEM", "Say")]


def test_word_of_an_end_comes_behind_what_its_sender_sent_and_is_a_dead_letter_where_nobody_reads_it() -> None:
    source = Watching(1)
    system = SimulatedSystem(source)
    for name in "ax":
        system.spawn(Scribe(Journal()), name)
    system.watch("x", "a")
    system.send("a", Crash(1))
    system.start()
    system.run(lambda: any(isinstance(event, DownNotice) for event in system.network.ready))
    (notice,) = [event for event in system.network.ready if isinstance(event, DownNotice)]
    assert notice.label == "a>x.down"
    notice.mailbox.close()
    system.run()
    (footprint,) = [footprint for label, footprint in source.footprints if label == notice.label]
    assert f"{LINE}a" in footprint.targets
    letter = system.dead_letters.recent()[-1]
    assert (letter.to, letter.sender, letter.reason) == ("x", "a", Reason.RECEIVER_GONE)


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


def test_in_the_fair_schedule_nobody_is_interrupted() -> None:
    labels: list[str] = []

    class Noting(Fair):
        def choose(self, kind: Kind, options: Sequence[Option]) -> int:
            labels.append(options[0].label)
            return 0

    system = SimulatedSystem(Noting())
    spawn_writers(system, "abx", (("a", Note("a", to("x", "x"))), ("b", Note("b", to("x")))))
    system.start()
    system.run()
    at = labels.index("a<outside>a.DATA")
    assert labels[at + 1 : at + 4] == ["a>x.DATA", "a>x.DATA", "b<outside>b.DATA"]


def test_what_concerns_everybody_is_independent_of_nothing() -> None:
    quiet, loud = Footprint(frozenset("x"), everything=False), Footprint(frozenset("y"), everything=True)
    assert quiet.independent(Footprint(frozenset("y"), everything=False))
    assert not quiet.independent(loud)
    assert not loud.independent(quiet)
    assert not quiet.independent(quiet)
    other = Footprint(frozenset("z"), everything=False)
    order = Order([Happened("", footprint) for footprint in (quiet, loud, other)])
    assert order.direct == [(), (0,), (1,)]


def test_failures_time_faults_and_dead_letters_concern_everybody() -> None:
    source = Watching(1)
    system = SimulatedSystem(source, faults=Faults(jump=1))
    journal = Journal()
    system.spawn(Scribe(journal), "weak")
    system.spawn(Scribe(journal), "sender")
    for message in (Say(1), Crash(1)):
        system.send("weak", message)
    for message in (SetTimers((1.0,)), Relay("nobody")):
        system.send("sender", message)
    system.start()
    system.run()
    loud = {label for label, footprint in source.footprints if footprint.everything}
    assert {"weak<outside>weak.DATA", "sender<outside>sender.DATA", "time"} <= loud
    assert loud & {"jump forward", "jump back"}
    assert loud.isdisjoint({"weak begins", "sender settles"})
    # The message before the crash concerned nobody else.
    taken = [footprint.everything for label, footprint in source.footprints if label == "weak<outside>weak.DATA"]
    assert taken == [False, True]


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


def test_who_was_held_back_has_settled_at_rest() -> None:
    outcomes: set[tuple[str, ...]] = set()
    letters: Letters = (("a", Note("a", to("x", "x"))), ("a", Note("b", to("x", "x"))))
    scenario = writing("ax", letters, outcomes, capacities={"x": 1}, overflow=Overflow.HOLD)
    assert explore(scenario, RandomWalk(1), 100).failure is None
    assert [written for written, _ in outcomes if not written.endswith("|")] == []
