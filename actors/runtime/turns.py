"""The turns of one actor in a simulated run: a real `Cell`, driven one step at a time."""

from __future__ import annotations

from typing import Any, Literal, Protocol

from pawl.actors.runtime.actor import Actor
from pawl.actors.runtime.cell import Cell, Host, Phase
from pawl.actors.runtime.choice import LINE
from pawl.actors.runtime.faults import InjectedCrash
from pawl.actors.runtime.mailbox import Entry
from pawl.actors.runtime.network import Carrier, Network, SimulatedMailbox
from pawl.actors.runtime.supervision import Restart
from pawl.actors.runtime.timers import ActorTimer


class Observer(Protocol):
    """Who wants to know what the actors of a system go through."""

    def delivered(self, name: str, message: Any) -> None:
        """The actor `name` is about to handle `message`."""

    def failed(self, name: str, error: BaseException) -> None:
        """An instance of the actor `name` is lost."""


class SimulatedCell(Cell):
    """A cell that can say what its next step would be, and be made to fail."""

    mailbox: SimulatedMailbox

    def __init__(
        self,
        host: Host,
        observer: Observer,
        actor: Actor,
        name: str,
        mailbox: SimulatedMailbox,
        restart: Restart | None,
        seed: int,
    ) -> None:
        super().__init__(host, actor, name, mailbox, restart, seed)
        self.crash: str | None = None
        """"before" or "after": the message handled next is where the actor fails."""
        self._observer = observer

    def _handle(self, message: Any, entry: Entry) -> None:
        crash, self.crash = self.crash, None
        self._observer.delivered(self.name, message)
        if crash != "before":
            super()._handle(message, entry)
        if crash is not None and self.phase is Phase.RUNNING:
            self._fail(InjectedCrash(self.name, crash), message, entry)

    def _fail(self, error: BaseException, message: Any = None, entry: Entry | None = None) -> None:
        self._observer.failed(self.name, error)
        super()._fail(error, message, entry)

    def busy(self) -> bool:
        """Whether `step` would do something."""
        if self.phase is Phase.RUNNING:
            if self._dirty or self._cut or self.mailbox.has_takeable() or (self._timers and self._timer_is_due()):
                return True
            return self._stop_reason is not None and self.mailbox.is_empty()
        if self.phase is Phase.BACKOFF:
            return self._cut or self._stop_reason is not None or self._host.clock() >= self._resume_at
        return self.phase is Phase.NEW

    def takes_message(self) -> bool:
        """Whether the next step hands a message to the actor."""
        return self.phase is Phase.RUNNING and not self._cut and self._next() is not None

    def _timer_is_due(self) -> bool:
        due = self._timers.next_due()
        return due is not None and due <= self._host.clock()

    def _next(self) -> Entry | Literal[True] | None:
        return self.mailbox.peek(timer_is_due=bool(self._timers) and self._timer_is_due())

    def label(self) -> str:
        """What the next step would do."""
        name = self.name
        if self._cut or self.phase is not Phase.RUNNING:
            return f"{name} {self._aside()}"
        found = self._next()
        if found is True or (found is not None and found[0].__class__ is ActorTimer):
            return f"{name}<timer"
        if found is not None:
            return self.mailbox.taking(found[1])
        if self._dirty:
            return f"{name} settles"
        return f"{name} rests" if self._stop_reason is None else f"{name} stops"

    def _aside(self) -> str:
        """What the next step does when the actor is not simply running."""
        if self.phase is Phase.NEW:
            return "begins"
        if self._cut:
            return "is cut off"
        return "resumes" if self._stop_reason is None else "stops"

    def dump(self) -> str:
        """One line for a person: state, what waits, next deadline."""
        due = self.deadline()
        deadline = "" if due is None else f", next deadline at {due:g} s"
        return f"{self.name}: {self.phase.name.lower()}, waiting: {self.mailbox.dump()}{deadline}"


class Turn:
    """Runs one actor (a `Driver`), one step for each choice. Among the ready events while there is something to do."""

    fault = False

    def __init__(self, cell: SimulatedCell, network: Network) -> None:
        self.cell = cell
        self.owner = self.target = cell.name
        self._network = network
        self._queued = False
        self._outbox: Carrier | None = network.add_outbox(cell.mailbox, cell.name)
        if self._outbox is not None:
            self._outbox.on_empty = self.rearm
        cell.mailbox.wake = self.make_ready

    @property
    def label(self) -> str:
        return self.cell.label()

    @property
    def event(self) -> tuple[str, int]:
        return self.cell.label(), sum(self.cell.mailbox.taken)

    def start(self) -> None:
        self.make_ready()

    def make_ready(self) -> None:
        """There is something to do; not before the outbox is empty."""
        if not self._queued and not (self._outbox is not None and self._sending()):
            self._queued = True
            self._network.ready.append(self)

    def _sending(self) -> bool:
        return self._outbox is not None and len(self._outbox.parcels) > 0

    def take_out(self) -> None:
        """Leave the ready events, to happen in another way than by `run`."""
        self._network.ready.remove(self)

    def run(self) -> None:
        """One step of the actor."""
        self._queued = False
        cell = self.cell
        if self._network.touched is not None:
            self._touch(self._network.touched)
        if cell.phase is Phase.NEW:
            cell.begin()
        else:
            cell.step()
        self.rearm()

    def _touch(self, touched: set[str]) -> None:
        """Note what the step depends on."""
        cell = self.cell
        touched.add(LINE + cell.name)
        # `started` does not look at the mailbox.
        if cell.phase is not Phase.NEW:
            touched.add(cell.name)
            # What it takes may let them go.
            touched.update(cell.mailbox.held_names())

    def rearm(self) -> None:
        """After a step, and when the outbox has become empty: line up again, or wait to be woken."""
        if self._outbox is not None and self._sending():
            return
        # While it waits out a backoff it cannot park, for messages wait; the clock or a stop gets it going again.
        if self.cell.busy() or not (self.cell.mailbox.park() or self.cell.phase is Phase.BACKOFF):
            self.make_ready()

    def wake_if_due(self, now: float) -> None:
        """The clock went on."""
        due = self.cell.deadline()
        if due is not None and due <= now:
            self.make_ready()
