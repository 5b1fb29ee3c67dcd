"""Whole processes of a simulated run: they die, freeze, or are cut off, and the first one finds out.

    kill       nothing of it runs any more          ┐ what is said between it and others is on its way, until
    freeze     nothing of it runs for a while       ├     notice   the first process takes it for lost
    part       it runs on, out of reach for a while ┘     or       it runs, or is reached, again

Each comes when the schedule says so. Of what was on its way to the first process when that notices, a beginning of each
wire is still heard, as the schedule says; then `Down` of each of its actors, and nothing afterwards, whatever is said.
A process that was not killed does not know that it was given up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from typing import Protocol

from pawl.actors.simulation.cell import SimulatedCell
from pawl.actors.simulation.driver import SimulatedDriver
from pawl.actors.simulation.events import FaultEvent, World
from pawl.actors.simulation.faults import FaultKind
from pawl.actors.simulation.network import Carrier, Network

STOPPED = (FaultKind.KILL, FaultKind.FREEZE)
"""Faults under which nothing of the process runs."""
WHOLE = (*STOPPED, FaultKind.PART)
"""Faults of whole processes."""
LOST = "with its process"


class Host(World, Protocol):
    """Where the actors are."""

    drivers: list[SimulatedDriver]

    def pick(self, name: str, labels: Sequence[str]) -> int: ...

    def given_up(self, cell: SimulatedCell, why: str, *, dead: bool) -> None: ...


class Happens:
    """Something that comes to a process that is out of reach."""

    fault = False
    target = ""

    def __init__(self, label: str, owner: str, happen: Callable[[], None]) -> None:
        self.label = label
        self.event = (label, 0)
        self.owner = owner
        self.run = happen


class Processes:
    """The processes of one run. The first one is never lost."""

    def __init__(self, host: Host, process_of: Callable[[str], str], first: str) -> None:
        self.mortal: Callable[[], Collection[str]] = tuple
        """Names of those to which something may happen now."""
        self.on_lost: Callable[[str], None] = lambda process: None
        """Hears of each that is given up, before any watcher does."""
        self.given_up: set[str] = set()
        """Those that the first one has taken for lost."""
        self._host = host
        self._process_of = process_of
        self._first = first
        self._away: dict[str, tuple[FaultKind, list[Happens]]] = {}
        """What has happened to those that are out of reach, and what is to come."""
        host.network.holds, host.network.refuses, host.network.drops = self.holds, self.refuses, self.drops

    # ---- what the network asks ----

    def holds(self, sender: str, receiver: str) -> bool:
        """Whether nothing arrives on this wire for now."""
        if not self._away:
            return False
        ends = {self._process_of(sender), self._process_of(receiver)}
        return any(kind in STOPPED or self._first in ends for name, (kind, _) in self._away.items() if name in ends)

    def refuses(self, sender: str, receiver: str) -> bool:
        """Whether the sender knows that nobody hears it."""
        return self._process_of(sender) == self._first and self._process_of(receiver) in self.given_up

    def drops(self, sender: str, receiver: str) -> bool:
        """Whether nobody hears it, and its sender does not know."""
        return self._process_of(receiver) == self._first and self._process_of(sender) in self.given_up

    # ---- what happens ----

    def faults(self) -> Iterator[FaultEvent]:
        """What may happen to a process now."""
        left = self._host.faults.left
        for kind in WHOLE:
            for process in self.mortal() if left[kind] else ():
                if process not in self._away and process not in self.given_up:
                    yield FaultEvent(self._host, kind, process, partial(self._strike, kind, process))

    def _strike(self, kind: FaultKind, process: str) -> None:
        come = [Happens(f"{process} is taken for lost", self._first, partial(self._notice, process))]
        if kind is not FaultKind.KILL:
            back = "goes on" if kind is FaultKind.FREEZE else "is reached again"
            come.append(Happens(f"{process} {back}", process, partial(self._back, process)))
        self._away[process] = kind, come
        if kind in STOPPED:
            for driver in self._drivers(process):
                driver.halt()
        for wire in self._wires(process):
            wire.line_up()
        self._network.ready += come

    def _notice(self, process: str) -> None:
        kind, come = self._away[process]
        del come[0]
        self.given_up.add(process)
        for wire in self._wires(process):
            self._cut(wire, heard=self._process_of(wire.ends[1]) == self._first, all_of_it=kind in STOPPED)
        self.on_lost(process)
        for driver in self._drivers(process):
            self._host.given_up(driver.cell, LOST, dead=kind is FaultKind.KILL)
        if kind is FaultKind.PART:
            self._network.ready.remove(come[0])
        if kind is not FaultKind.FREEZE:
            del self._away[process]
        self._network.send_off()

    def _cut(self, wire: Carrier, *, heard: bool, all_of_it: bool) -> None:
        """What is on its way between the process and the first one is lost, but for a beginning of what the first one
        hears; `all_of_it`: on its other wires as well."""
        if not heard and not all_of_it and self._first not in map(self._process_of, wire.ends):
            return
        if heard and wire.envelopes:
            labels = [f"{count} messages" for count in range(len(wire.envelopes) + 1)]
            wire.arrive(self._host.pick(f"{wire.owner} still says", labels))
        wire.lose_all()

    def _back(self, process: str) -> None:
        """It goes on, or is reached again."""
        _, come = self._away.pop(process)
        if process not in self.given_up:  # it will not be, for this
            self._network.ready.remove(come[0])
        for driver in self._drivers(process):
            driver.go_on()
        for wire in self._wires(process):
            wire.line_up()

    # ---- what belongs to a process ----

    @property
    def _network(self) -> Network:
        return self._host.network

    def _drivers(self, process: str) -> list[SimulatedDriver]:
        return [driver for driver in self._host.drivers if self._process_of(driver.owner) == process]

    def _wires(self, process: str) -> list[Carrier]:
        """Those from it, and to it."""
        return [wire for wire in self._network.wires if process in map(self._process_of, wire.ends)]
