"""Actors that come up in one process while another one is linked with it, and those that cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pawl.actors.runtime.actor import Actor
from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.processes.system import ProcessSystem
from tests.actors.conformance_base import Say, Scribe
from tests.actors.memory_wires import MemoryWire
from tests.actors.runtime_doing import Doing, ignore
from tests.actors.test_runtime_processes_link import Between


@pytest.fixture
def between() -> Iterator[Between]:
    made = Between()
    yield made
    made.stop()


class AtOnce:
    """A driver that has brought its actor up before it is known that it will."""

    def __init__(self, cell: Cell) -> None:
        self.start = cell.begin


class Early(Scribe):
    """Sends before anybody has sent it anything."""

    def started(self) -> None:
        super().started()
        for number in range(3):
            self.context.send("x", Say(number, "early"))


def test_what_a_late_actor_sends_as_it_begins_is_heard_where_it_was_not_known(between: Between) -> None:
    between.a.start()
    between.b.start()
    between.b._make_driver = lambda cell, loop: AtOnce(cell)  # type: ignore[method-assign]
    between.spawn(between.b, Early(between.journal), "early")
    between.wait_for("x", Say(2, "early"))
    assert between.journal.numbers("x", "early") == [0, 1, 2]
    assert (between.lost, between.a.dead_letters.total) == ([], 0)
    between.b.find("early").withdraw()  # type: ignore[union-attr]


class Anything(Actor):
    """Says nothing of what it accepts."""


REFUSED: dict[str, Callable[[ProcessSystem], None]] = {
    "a name that is taken": lambda system: system.spawn(Doing(ignore), "y"),
    "a name of another process": lambda system: system.spawn(Doing(ignore), "x"),
    "the name of nobody": lambda system: system.spawn(Doing(ignore), "outside"),
    "no room": lambda system: system.spawn(Doing(ignore), "new", capacity=0),
    "nothing accepted": lambda system: system.spawn(Anything(), "new"),
    "nobody watches": lambda system: system.watch("new", "y"),
    "nobody is watched": lambda system: system.watch("y", "new"),
    "no ear for an end": lambda system: system.watch("deaf", "y"),
    "a process that is there": lambda system: system.connect("a", MemoryWire()) and None,
    "a second start": lambda system: system.start(),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_changes_nothing(what: str, between: Between) -> None:
    between.spawn(between.b, Doing(ignore), "deaf")
    between.b.start()

    def known() -> dict[str, object]:
        parts = {name: part for name, part in vars(between.b).items() if isinstance(part, dict | list)}
        return {name: dict(part) if isinstance(part, dict) else [*part] for name, part in parts.items()}

    before, sent = known(), len(between.wires["b"].sent)
    with pytest.raises((ValueError, TypeError, KeyError, RuntimeError)):
        REFUSED[what](between.b)
    assert known() == before
    assert len(between.wires["b"].sent) == sent, "and nobody is told"
    between.a.send("y", Say(1))
    between.deliver()
    between.wait_for("y", Say(1))
