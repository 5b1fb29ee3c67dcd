"""The simulated runtime: one thread, a virtual clock, and every freedom of the real runtimes as a recorded choice.

The actors, their cells and their mailboxes are the real ones; only the drivers, the clock and the way of a message into
a mailbox are replaced. What one step of the run can be:

    begin, take, settle, stop              one step of one actor, as its thread would do it
    arrive                                 the oldest message of an outbox or a wire reaches its mailbox
    time                                   the clock goes on to the next deadline (only when nothing else can happen)
    a fault                                if its budget allows (`pawl.actors.simulation.faults`)

What the local runtime guarantees holds in every schedule: order along each edge; a message is in the mailbox when
`send` returns, so what an actor causes comes after what it sent before; SYSTEM before CONTROL before DATA among what
has arrived, without starving DATA; `settled` only when nothing that arrived waits; timers never early, in order; `Down`
behind everything of its sender. Everything else is open: who runs, and what happens between two sends of a handler.
Between processes (`is_wire`) only order along each edge and `Down` are guaranteed.

Two simplifications: whether a mailbox is full is decided when the handler that sends runs, not at each of its sends;
and a handler reads one clock.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from pawl.actors.runtime.actor import Actor, Overflow
from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.dead_letters import DeadLetter
from pawl.actors.runtime.drivers import Driver
from pawl.actors.runtime.local import LocalSystem, OnFailure
from pawl.actors.runtime.receiver import Receiver
from pawl.actors.simulation.cell import MakeCodec, SimulatedCell
from pawl.actors.simulation.choice import Choices, ChoiceSource, Follower, Footprint, Kind, Option, value_options
from pawl.actors.simulation.driver import SimulatedDriver
from pawl.actors.simulation.endless import Endless, Stuck
from pawl.actors.simulation.events import Clock, Stopping, clock_faults, faults_of_work
from pawl.actors.simulation.faults import FaultBudget, FaultKind, Faults, InjectedCrash
from pawl.actors.simulation.mailbox import SimulatedMailbox
from pawl.actors.simulation.network import Event, IsWire, Network, no_wires
from pawl.actors.simulation.processes import Processes

EPOCH_S = 1_700_000_000.0
"""Wall clock at the beginning of every run."""
MOST_STEPS = 1_000_000
"""Steps of one `run` before it is taken for endless."""


class ActorFailure(NamedTuple):
    """One actor that was lost."""

    name: str
    error: BaseException


class SimulatedSystem(LocalSystem):
    """Actors in one thread, driven by `source` (see `pawl.actors.runtime.system.System` for what the methods promise).

    `stop` drives the run itself, `run` and `step` all else. Times are virtual seconds since the run began.
    """

    def __init__(
        self,
        source: ChoiceSource,
        seed: int = 0,
        *,
        faults: Faults | None = None,
        is_wire: IsWire = no_wires,
        preempt: bool = True,
        make_codec: MakeCodec | None = None,
        on_failure: OnFailure | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> None:
        """`preempt=False` lets all messages of a handler arrive at once: fewer choices, but what happens between two
        sends of one handler is not explored. With `make_codec` every message goes through bytes on its way."""
        super().__init__(
            seed, clock=self._read_clock, wall=self._read_wall, on_failure=on_failure, on_dead_letter=self._letter
        )
        self.source = source
        self._make_codec = make_codec
        self.choices = Choices()
        """What was decided so far."""
        self.random = random.Random(f"{seed}/outside")
        """For identifiers and data that a scenario needs."""
        self.faults = FaultBudget(faults or Faults())
        self.failures: list[ActorFailure] = []
        """Actors lost, in order."""
        self.violation: BaseException | None = None
        """What `report` was told first."""
        self.num_steps = 0
        self.num_deliveries = 0
        """Messages handed to actors, timers included."""
        self.on_delivery: Callable[[str, Any], None] | None = None
        """Called with (actor, message) before each delivery."""
        self.inside: Callable[[str, Any], AbstractContextManager[None]] | None = None
        self.wall_offset_s = EPOCH_S
        self.now_s = 0.0
        self.network = Network(self.dead_letters, is_wire, preempt=preempt)
        self.drivers: list[SimulatedDriver] = []
        self.processes: Processes | None = None
        """Set where whole ones may be lost."""
        # Not by `isinstance`: looking at a protocol takes as long as some steps of the run.
        self._follower: Follower | None = source if hasattr(source, "executed") else None  # type: ignore[assignment]
        self._faults_of_work = faults_of_work(self.faults.left)
        self._user_on_dead_letter = on_dead_letter
        self._clock_event = Clock(self)
        self._stopping: Stopping | None = None
        self._in_step = self._everything = False
        self._num_values = 0
        self._broken: BaseException | None = None

    # ---- one step at a time ----

    def step(self) -> bool:
        """Let one event happen. False: nothing can. Raises what the source raises, and what was reported."""
        ready = self.network.ready
        options: Sequence[Event] = ready or self._when_idle()
        if not options:
            return False
        if self.faults.any_left:
            options = [*options, *self._fault_events()]
        index = self._decide(Kind.NEXT, options)
        event = options[index]
        if index < len(ready):
            # Who was passed over lines up at the end: one deviation is one delay, and not one for each later decision.
            if index:
                ready += ready[:index]
            del ready[: index + 1]
        self.num_steps += 1
        self._in_step = True
        if self._follower is None:
            event.run()
        else:
            self._run_followed(event, self._follower)
        self._in_step = False
        if self._stopping is not None:
            self._stopping.look()
        if self._broken is not None:
            raise self._broken
        if self.violation is not None:
            raise self.violation
        return True

    def _run_followed(self, event: Event, follower: Follower) -> None:
        touched: set[str] = set()
        self.network.touched = touched
        # Who fails, stops or moves the clock concerns everybody.
        self._everything = event.fault or event.target == "" or self._stopping is not None
        event.run()
        self.network.touched = None
        follower.executed(Footprint(frozenset(touched), self._everything))

    def _decide(self, kind: Kind, options: Sequence[Option]) -> int:
        if len(options) == 1 and (self._follower is None or kind is not Kind.NEXT):
            return 0
        index = self.source.choose(kind, options)
        if not 0 <= index < len(options):
            raise IndexError(f"{type(self.source).__name__} chose {index} of {len(options)} options")
        if len(options) > 1:
            self.choices.add(kind, index, options[index].label)
        return index

    def _when_idle(self) -> list[Event]:
        """Nothing is ready: only the clock can go on."""
        return [self._clock_event] if self.next_deadline() is not None else []

    def _fault_events(self) -> Iterator[Event]:
        ready = self.network.ready
        for event in ready:
            for make in self._faults_of_work:
                yield from make(self, event)
        yield from clock_faults(self, idle=not ready)
        if self.processes is not None:
            yield from self.processes.faults()

    # ---- the clock ----

    def _read_clock(self) -> float:
        return self.now_s

    def _read_wall(self) -> float:
        return self.now_s + self.wall_offset_s

    def next_deadline(self) -> float | None:
        """When the next timer or time limit is due that has not come yet."""
        dues = [due for driver in self.drivers if (due := driver.cell.deadline()) is not None and due > self.now_s]
        if self._stopping is not None and self._stopping.deadline > self.now_s:
            dues.append(self._stopping.deadline)
        return min(dues, default=None)

    def advance(self, until: float) -> None:
        """Set the clock to `until`; whoever has something due then becomes ready, the earliest first."""
        self.now_s, self._everything = until, True
        due = [driver for driver in self.drivers if (at := driver.cell.deadline()) is not None and at <= until]
        for driver in sorted(due, key=lambda driver: driver.cell.deadline() or 0.0):
            driver.make_ready()

    def run(
        self, until: Callable[[], bool] | None = None, *, timeout_s: float | None = None, max_steps: int = MOST_STEPS
    ) -> bool:
        """Go on until the condition holds (True), or until the run is at rest or `timeout_s` has passed (False).

        Raises Stuck when it is at rest and messages wait that nobody can take, Endless after `max_steps`.
        """
        limit = None if timeout_s is None else self.now_s + timeout_s
        for _ in range(max_steps):
            if until is not None and until():
                return True
            if limit is not None and not self.network.ready:
                due = self.next_deadline()
                if due is None or due > limit:
                    self.advance(limit)
                    limit = None
                    if not self.network.ready:
                        return False
                    continue
            elif limit is not None and self.now_s >= limit:
                return False
            if not self.step():
                self.check_not_stuck()
                return False
        raise Endless(max_steps, self.dump())

    def num_waiting(self) -> int:
        """Messages that were sent and not taken."""
        boxes = [driver.cell.mailbox for driver in self.drivers]
        return self.network.num_on_the_way() + sum(sum(box.depths()) for box in boxes if box.waits)

    def check_not_stuck(self) -> None:
        """At rest: raises Stuck if messages wait all the same."""
        if (waiting := self.num_waiting()) > 0:
            raise Stuck(f"nothing can happen, but {waiting} messages wait", self.dump())

    def dump(self) -> str:
        """The whole system in lines for a person."""
        carriers = (*self.network.outboxes.values(), *self.network.wires)
        coming = [
            f"on its way: {mailbox.route(entry[1])} {type(entry[0]).__name__}"
            for carrier in carriers
            for mailbox, entry in carrier.envelopes
        ]
        head = f"at {self.now_s:g} s, after {self.num_steps} steps and {self.num_deliveries} deliveries"
        faults = [f"faults so far: {self.faults.struck}"] if self.faults.struck else []
        return "\n".join([head, *faults, *(driver.cell.dump() for driver in self.drivers), *coming])

    def state(self) -> Hashable:
        """What waits where."""
        return tuple([(driver.cell.phase, driver.cell.mailbox.depths()) for driver in self.drivers])

    # ---- for scenarios ----

    def strikes(self, place: str, kind: FaultKind = FaultKind.STRIKE) -> bool:
        """Whether a fault of this `kind`, one of `ASKED`, strikes at this place, as often as its budget allows. For
        fakes that can fail."""
        left = self.faults.left[kind]
        if not left or not self._choose_value(Kind.STRIKE, f"strike {place}", ("no", "yes"), faults_from=1):
            return False
        self.faults.spend(kind, place)
        return True

    def pick(self, name: str, labels: Sequence[str], *, faults: int = 0) -> int:
        """Index of one of `labels`, of which the last `faults` are some: the schedule decides. The first is dull."""
        return self._choose_value(Kind.PICK, name, labels, faults_from=len(labels) - faults)

    def _choose_value(self, kind: Kind, name: str, labels: Sequence[str], *, faults_from: int) -> int:
        self._num_values += 1
        self._everything = True
        try:
            return self._decide(kind, value_options(name, labels, self._num_values, faults_from=faults_from))
        except BaseException as error:
            # Actors survive what is raised in a handler; the end of a playback is no failure of an actor.
            self._broken = error
            raise

    def report(self, violation: BaseException) -> None:
        """A property does not hold: `step` raises this when the event that runs is over. For checks inside handlers,
        where an exception would be taken for a failure of the actor."""
        if self.violation is None:
            self.violation = violation

    def fault_spent(self, kind: FaultKind, label: str) -> None:
        """A fault strikes now."""
        self.faults.spend(kind, label)
        self._faults_of_work = faults_of_work(self.faults.left)

    # ---- what cells tell ----

    def delivered(self, name: str, message: Any) -> None:
        self.num_deliveries += 1
        if self.on_delivery is not None:
            self.on_delivery(name, message)

    def failed(self, name: str, error: BaseException) -> None:
        self._everything = True
        self.failures.append(ActorFailure(name, error))

    def _letter(self, letter: DeadLetter) -> None:
        self._everything = True
        if self._user_on_dead_letter is not None:
            self._user_on_dead_letter(letter)

    def ended(self, cell: Cell, reason: str, error: BaseException | None) -> None:
        self._everything = True
        if error is not None and (not self.failures or self.failures[-1].error is not error):
            self.failures.append(ActorFailure(cell.name, error))
        super().ended(cell, reason, error)

    def given_up(self, cell: SimulatedCell, why: str, *, dead: bool) -> None:
        """Others take this actor for lost; where it is not `dead`, it does not know."""
        if dead:
            cell.vanish(why)
            return
        self.failed(cell.name, InjectedCrash(cell.name, why))
        for watcher in self._watchers.pop(cell.name, []):
            self._send_down(watcher, cell.name, why)

    def find(self, name: str) -> Receiver | None:
        # Whoever asks from outside acts on the answer.
        self._everything = self._everything or name not in self._cells
        return super().find(name)

    # ---- what differs from threads ----

    def _make_cell(self, actor: Actor, name: str, capacity: int, overflow: Overflow) -> SimulatedCell:
        mailbox = SimulatedMailbox(name, capacity, overflow, self.network)
        return SimulatedCell(self, self, actor, name, mailbox, self._seed, self._make_codec)

    def _make_driver(self, cell: Cell, loop: asyncio.AbstractEventLoop | None) -> Driver:
        assert isinstance(cell, SimulatedCell)
        self.drivers.append(SimulatedDriver(cell, self.network))
        return self.drivers[-1]

    def _send_down(self, watcher: str, watched: str, reason: str) -> None:
        self._everything = True
        super()._send_down(watcher, watched, reason)

    def _refuse_in_actor(self, what: str) -> None:
        if self._in_step:
            raise RuntimeError(f"`{what}` blocks, and this is a step of the run")

    def begin_stop(self, order: Sequence[str] = (), timeout_s: float = 30.0) -> None:
        """Stop step by step, each of which is an event of the run; the first call counts, later ones do nothing."""
        if self._stopping is None:
            self._stopping = Stopping(self, self._stop_in_order(tuple(order), timeout_s), self._stopped.set)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Run until everything has stopped; False when `timeout_s` virtual seconds passed first."""
        return self.run(self._stopped.is_set, timeout_s=timeout_s)
