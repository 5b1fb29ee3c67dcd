"""Small systems with a known set of outcomes, for tests of strategies."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import msgspec

from pawl.actors.runtime.actor import Actor, Lane, Overflow
from pawl.actors.runtime.system import System
from pawl.actors.simulation.choice import ChoiceSource
from pawl.actors.simulation.exploration import Case, Scenario
from pawl.actors.simulation.system import SimulatedSystem


class Go(msgspec.Struct, frozen=True, tag=True):
    """Begin; or: pass it on."""


class Read(msgspec.Struct, frozen=True, tag=True):
    reply_to: str


class Found(msgspec.Struct, frozen=True, tag=True):
    value: int


class Write(msgspec.Struct, frozen=True, tag=True):
    value: int


class Store(Actor):
    """One number that anybody may read and write, and no way to do both at once."""

    accepts = Read | Write

    def __init__(self) -> None:
        self.value = 0

    def receive(self, message: Any) -> None:
        match message:
            case Read(reply_to):
                self.context.send(reply_to, Found(self.value))
            case Write(value):
                self.value = value


class Adder(Actor):
    """Adds one to the store, by reading first: two of them can lose an update."""

    accepts = Go | Found

    def receive(self, message: Any) -> None:
        match message:
            case Go():
                self.context.send("store", Read(self.context.name))
            case Found(value):
                self.context.send("store", Write(value + 1))


class Pass(Actor):
    """Passes everything on."""

    accepts = Go

    def __init__(self, to: str) -> None:
        self.to = to

    def receive(self, message: Any) -> None:
        self.context.send(self.to, message)


class LostUpdate(Case):
    """Nothing is lost."""

    def __init__(self, system: SimulatedSystem, store: Store) -> None:
        super().__init__(system)
        self.store = store

    def at_rest(self) -> None:
        assert self.store.value == 2, f"an update is lost: {self.store.value}"

    def state(self) -> Hashable:
        return (self.store.value, super().state())


def lost_update(source: ChoiceSource, hops: int = 5) -> LostUpdate:
    """Two adders. The second learns late that it should begin: in a fair schedule the first is done by then."""
    system = SimulatedSystem(source)
    store = Store()
    system.spawn(store, "store")
    system.spawn(Adder(), "first")
    system.spawn(Adder(), "second")
    for hop in range(hops):
        system.spawn(Pass(f"hop {hop + 1}" if hop + 1 < hops else "second"), f"hop {hop}")
    system.send("first", Go())
    system.send("hop 0", Go())
    system.start()
    return LostUpdate(system, store)


class Note(msgspec.Struct, frozen=True, tag=True):
    """A letter to be written down; `forward` says to whom the receiver passes it on."""

    letter: str
    forward: tuple[tuple[str, Lane], ...] = ()


class Writer(Actor):
    """Writes down what it receives (and when it settles) and passes it on."""

    accepts = Note

    def __init__(self) -> None:
        self.written = ""

    def receive(self, message: Any) -> None:
        self.written += message.letter
        for index, (to, lane) in enumerate(message.forward):
            self.context.send(to, Note(f"{message.letter}{index}"), lane)

    def settled(self) -> None:
        self.written += "|"


Letters = tuple[tuple[str, Note], ...]
"""What is sent from outside before the start: (to, note)."""


def spawn_writers(
    system: System,
    names: str,
    letters: Letters,
    capacities: dict[str, int] | None = None,
    overflow: Overflow = Overflow.REJECT,
) -> dict[str, Writer]:
    """One writer for each letter of `names`, with what waits for it; those in `capacities` have less room."""
    writers = {name: Writer() for name in names}
    for name, writer in writers.items():
        system.spawn(writer, name, capacity=(capacities or {}).get(name, 1024), overflow=overflow)
    for to, note in letters:
        assert system.send(to, note)
    return writers


class Writers(Case):
    """Adds what every writer has written at rest to a set."""

    def __init__(self, system: SimulatedSystem, writers: dict[str, Writer], outcomes: set[tuple[str, ...]]) -> None:
        super().__init__(system)
        self.outcomes = outcomes
        self.writers = writers
        system.start()

    def at_rest(self) -> None:
        self.outcomes.add(self.written())

    def state(self) -> Hashable:
        return self.written()

    def written(self) -> tuple[str, ...]:
        return tuple(writer.written for writer in self.writers.values())


def writing(
    names: str,
    letters: Letters,
    outcomes: set[tuple[str, ...]],
    capacities: dict[str, int] | None = None,
    overflow: Overflow = Overflow.REJECT,
    **options: Any,
) -> Scenario:
    """A scenario of `Writers`; `options` are those of the system."""

    def scenario(source: ChoiceSource) -> Writers:
        system = SimulatedSystem(source, **options)
        return Writers(system, spawn_writers(system, names, letters, capacities, overflow), outcomes)

    return scenario


def to(*names: str, lane: Lane = Lane.DATA) -> tuple[tuple[str, Lane], ...]:
    """Receivers that a note is passed on to."""
    return tuple((name, lane) for name in names)
