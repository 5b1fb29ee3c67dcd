"""Events of a simulated run that are no message: the clock, a stop under way, and faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol, TypeAlias

from pawl.actors.runtime.receiver import Receiver
from pawl.actors.simulation.choice import CLOCK
from pawl.actors.simulation.driver import SimulatedDriver
from pawl.actors.simulation.faults import FaultBudget, FaultKind
from pawl.actors.simulation.network import Carrier, Event, Network


class World(Protocol):
    """What these events act on."""

    network: Network
    faults: FaultBudget
    now_s: float
    wall_offset_s: float

    def next_deadline(self) -> float | None: ...

    def advance(self, until: float) -> None: ...

    def fault_spent(self, kind: FaultKind, label: str) -> None: ...


class Clock:
    """The clock goes on to the next deadline. Touches everybody (no target)."""

    label = "time"
    event = ("time", 0)
    owner = CLOCK
    target = ""
    fault = False

    def __init__(self, world: World) -> None:
        self._world = world

    def run(self) -> None:
        due = self._world.next_deadline()
        if due is not None:
            self._world.advance(due)


class Stopping:
    """An orderly stop: asks one actor after another to stop, and is ready to go on when the one it waits for has ended,
    and all that it said has left its process, or the time for that is over."""

    owner = "stop"
    target = ""
    fault = False

    def __init__(self, world: World, steps: Iterator[tuple[Receiver, float]], on_end: Callable[[], None]) -> None:
        self.label = "stop goes on"
        self.event = (self.label, 0)
        self.deadline = 0.0
        """When it goes on at the latest."""
        self._world = world
        self._steps = steps
        self._on_end = on_end
        self._waits_for: Receiver | None = None
        world.network.ready.append(self)

    def run(self) -> None:
        try:
            self._waits_for, self.deadline = next(self._steps)
        except StopIteration:
            self._waits_for, self.deadline = None, 0.0
            self._on_end()

    def look(self) -> None:
        """Line up if the wait is over."""
        cell = self._waits_for
        if cell is None:
            return
        ended = cell.over.is_set() and not self._world.network.carries_of(cell.name)
        if ended or self._world.now_s >= self.deadline:
            self._waits_for = None
            self._world.network.ready.append(self)


class FaultEvent:
    """One fault that may strike now."""

    fault = True
    target = ""

    def __init__(self, world: World, kind: FaultKind, what: str, strike: Callable[[], None]) -> None:
        self._world = world
        self._kind = kind
        self._what = what
        self._strike = strike

    @property
    def label(self) -> str:
        return f"{self._kind} {self._what}"

    @property
    def event(self) -> tuple[str, int]:
        return self.label, 0

    @property
    def owner(self) -> str:
        return f"fault {self._kind}"

    def run(self) -> None:
        self._world.fault_spent(self._kind, self.label)
        self._strike()


def crashes(world: World, event: Event) -> Iterator[Event]:
    """The actor whose turn it is may fail before or after the message it would take."""
    budget = world.faults
    if budget.left[FaultKind.CRASH] == 0 or not isinstance(event, SimulatedDriver) or not event.cell.takes_message():
        return
    may_crash = budget.faults.may_crash
    if may_crash is not None and event.owner not in may_crash:
        return
    driver = event

    def crash(moment: str) -> None:
        driver.take_out()
        driver.cell.crash = moment
        driver.run()
        # A timer that was cancelled is taken and not handled.
        driver.cell.crash = None

    for moment in ("before", "after"):
        yield FaultEvent(world, FaultKind.CRASH, f"{event.owner} {moment} {event.label}", partial(crash, moment))


def losses(world: World, event: Event) -> Iterator[Event]:
    """The next message of a wire may be lost or doubled."""
    if not isinstance(event, Carrier) or not event.is_wire:
        return
    wire = event

    def instead(act: Callable[[], None]) -> None:
        wire.take_out()
        act()

    if world.faults.left[FaultKind.LOSE]:
        yield FaultEvent(world, FaultKind.LOSE, event.label, partial(instead, wire.lose))
    if world.faults.left[FaultKind.DOUBLE]:
        yield FaultEvent(world, FaultKind.DOUBLE, event.label, partial(instead, wire.double))


MakeFaults: TypeAlias = Callable[[World, Event], Iterator[Event]]


def faults_of_work(left: Mapping[FaultKind, int]) -> tuple[MakeFaults, ...]:
    """Makers of the faults that concern one ready event, as far as the budget is not used up."""
    kinds = {crashes: (FaultKind.CRASH,), losses: (FaultKind.LOSE, FaultKind.DOUBLE)}
    return tuple(make for make, made in kinds.items() if any(left[kind] for kind in made))


def clock_faults(world: World, *, idle: bool) -> Iterator[Event]:
    """What may go wrong with time."""
    left, faults = world.faults.left, world.faults.faults
    early_or_late, late_s = (FaultKind.LATE, faults.late_s) if idle else (FaultKind.RUSH, 0.0)
    due = world.next_deadline() if left[early_or_late] else None
    if due is not None:
        yield FaultEvent(world, early_or_late, "time", partial(world.advance, due + late_s))
    if left[FaultKind.JUMP]:

        def jump(jump_s: float) -> None:
            world.wall_offset_s += jump_s

        for what, jump_s in (("forward", faults.jump_s), ("back", -faults.jump_s)):
            yield FaultEvent(world, FaultKind.JUMP, what, partial(jump, jump_s))
