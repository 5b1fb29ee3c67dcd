"""Messages on their way, in a simulated run.

A real actor runs in its own thread: between two sends of one handler anything else may happen, and what one process
sends to another takes its time. Here a handler runs to its end at once, and what it sends waits in a carrier until it
is chosen to arrive:

    outbox   one for each actor: everything it sends inside the process, in the order it was sent. The actor takes no
             further message before its outbox is empty (it is still in that handler).
    wire     one for each (sender, receiver, lane) between processes. Only the order along that edge is kept, and the
             sender goes on.

From its arrival on a message is in a real `Mailbox`, so lanes, bounds, holding and fences are not simulated.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.runtime.choice import LINE, Option
from pawl.actors.runtime.mailbox import ACCEPTED, BURST, CONTROL, DATA, SYSTEM, Edge, Entry, Mailbox, Outcome
from pawl.actors.runtime.supervision import DeadLetters, Reason

IsWire = Callable[[str, str], bool]
"""Whether messages from the first actor to the second leave the process."""


def no_wires(sender: str, receiver: str) -> bool:
    """Everything in one process: what the local runtime promises."""
    return False


def all_wires(sender: str, receiver: str) -> bool:
    """Every actor in a process of its own: nothing is promised but order along each edge."""
    return True


class Event(Option, Protocol):
    """An option that can be made to happen."""

    def run(self) -> None:
        """Let it happen. It is not among the ready ones any more."""


class Envelope(NamedTuple):
    """One message on its way."""

    mailbox: SimulatedMailbox
    entry: Entry


class Carrier:
    """An outbox or a wire. Among the ready events while it is not empty."""

    fault = False

    def __init__(self, network: Network, owner: str, *, is_wire: bool) -> None:
        self.owner = owner
        self.is_wire = is_wire
        self.parcels: deque[Envelope] = deque()
        self.on_empty: Callable[[], None] = lambda: None
        self._network = network

    @property
    def label(self) -> str:
        mailbox, (_, edge, _) = self.parcels[0]
        return mailbox.route(edge)

    @property
    def event(self) -> tuple[str, int]:
        return self.label, self.parcels[0].entry[2]

    @property
    def target(self) -> str:
        return self.parcels[0].mailbox.name

    def add(self, parcel: Envelope) -> None:
        """The sender has sent one more."""
        if not self.parcels:
            self._make_ready()
        self.parcels.append(parcel)
        if self.is_wire:
            self._touch(parcel)

    def _touch(self, parcel: Envelope) -> None:
        """Note that sending a message comes before its arrival. On a wire, only of the same message."""
        touched = self._network.touched
        if touched is not None:
            touched.add(f"{LINE}{self.owner}#{parcel.entry[2]}" if self.is_wire else LINE + self.owner)

    def _make_ready(self) -> None:
        # Fair is: a handler's messages arrive before anybody else does anything.
        if self.is_wire:
            self._network.ready.append(self)
        else:
            self._network.ready.insert(0, self)

    def run(self) -> None:
        """The first message arrives."""
        mailbox, entry = self._pop()
        mailbox.arrive(entry)
        self.after_one()

    def lose(self) -> None:
        """The first message never arrives."""
        mailbox, entry = self._pop()
        mailbox.forget(entry)
        self.after_one()

    def double(self) -> None:
        """The first message arrives, and will arrive again."""
        mailbox, entry = self.parcels[0]
        mailbox.arrive(entry)
        mailbox.expect(entry)
        self._make_ready()

    def _pop(self) -> Envelope:
        parcel = self.parcels.popleft()
        if self._network.touched is not None:
            self._network.touched.add(LINE + self.owner)
            self._touch(parcel)
        return parcel

    def after_one(self) -> None:
        """The first message has left: on with the next, or the sender may go on."""
        if self.parcels:
            self._make_ready()
        else:
            self.on_empty()
        self._network.send_off()


class DownNotice:
    """A `Down` on its way: ready once nothing else of the same sender is on its way to the same receiver."""

    fault = False

    def __init__(self, network: Network, mailbox: SimulatedMailbox, message: Any, edge: Edge) -> None:
        self.edge = edge
        self.mailbox = mailbox
        self.owner = edge.sender
        self.target = mailbox.name
        self.label = f"{edge.sender}>{mailbox.name}.down"
        self.event = (self.label, 0)
        self._message = message
        self._network = network

    def run(self) -> None:
        if self._network.touched is not None:
            self._network.touched.add(LINE + self.owner)
        if not self.mailbox.arrive_fenced(self._message, self.edge):
            self._network.dead_letters.add(self.target, self.owner, self._message, Reason.RECEIVER_GONE)


class Network:
    """All carriers of one system, and the list of ready events that they enter themselves into."""

    def __init__(self, dead_letters: DeadLetters, is_wire: IsWire, *, preempt: bool) -> None:
        self.ready: list[Event] = []
        """What can happen now; the fair choice is the first."""
        self.dead_letters = dead_letters
        self.touched: set[str] | None = None
        """What was touched (`Footprint`) by the event that runs, when somebody wants to know."""
        self.outboxes: dict[Mailbox, Carrier] = {}
        self.wires: list[Carrier] = []
        self._is_wire = is_wire
        self._preempt = preempt
        self._farewells: list[DownNotice] = []

    def add_outbox(self, mailbox: Mailbox, owner: str) -> Carrier | None:
        """The outbox of the actor that reads `mailbox`; None when its messages arrive at once."""
        if not self._preempt:
            return None
        outbox = self.outboxes[mailbox] = Carrier(self, owner, is_wire=False)
        return outbox

    def carrier(self, edge: Edge, receiver: str) -> Carrier | None:
        """What carries messages along an edge; None: they arrive at once."""
        if edge.sender != receiver and self._is_wire(edge.sender, receiver):
            wire = Carrier(self, f"{edge.sender}>{receiver}.{Lane(edge.lane).name}", is_wire=True)
            self.wires.append(wire)
            return wire
        # Timers, and senders outside, are not in the middle of a handler.
        return None if edge.sender_mailbox is None else self.outboxes.get(edge.sender_mailbox)

    def post_farewell(self, mailbox: SimulatedMailbox, message: Any, edge: Edge) -> None:
        """Send `Down` behind everything else of its sender."""
        self._farewells.append(DownNotice(self, mailbox, message, edge))
        self.send_off()

    def send_off(self) -> None:
        """Make those farewells ready that have nothing before them any more."""
        if not self._farewells:
            return
        for farewell in tuple(self._farewells):
            if not self._on_the_way(farewell.edge.sender, farewell.mailbox):
                self._farewells.remove(farewell)
                self.ready.append(farewell)

    def _on_the_way(self, sender: str, mailbox: SimulatedMailbox) -> bool:
        return any(
            parcel.mailbox is mailbox and parcel.entry[1].sender == sender
            for carrier in (*self.outboxes.values(), *self.wires)
            for parcel in carrier.parcels
        )

    def num_on_the_way(self) -> int:
        """Messages that have not arrived."""
        return sum(len(carrier.parcels) for carrier in (*self.outboxes.values(), *self.wires)) + len(self._farewells)


class SimulatedMailbox(Mailbox):
    """A mailbox whose messages arrive when they are chosen to. Room is reserved when a message is sent, so `send` is
    answered at once as in the real runtime."""

    def __init__(self, name: str, capacity: int, overflow: Overflow, network: Network) -> None:
        super().__init__(capacity, overflow)
        self.name = name
        self._network = network
        self._coming = 0
        """DATA messages on their way."""
        self._carriers: dict[Edge, Carrier | None] = {}
        self._routes: dict[Edge, str] = {}
        self._takings: dict[Edge, str] = {}

    # ---- written by senders ----

    def put(self, message: Any, edge: Edge) -> Outcome:
        """Send one message: it arrives later, unless nothing can come between."""
        try:
            carrier = self._carriers[edge]
        except KeyError:
            carrier = self._carriers[edge] = self._network.carrier(edge, self.name)
        if carrier is None:
            self._touch(arrives=True)
            return super().put(message, edge)
        if self._closed:
            return Outcome.CLOSED
        outcome = self._reserve(edge) if edge.lane == DATA else ACCEPTED
        if outcome is not Outcome.REJECTED:
            edge.sent += 1
            carrier.add(Envelope(self, (message, edge, edge.sent)))
        return outcome

    def _reserve(self, edge: Edge) -> Outcome:
        """Take one place in the DATA lane, if there is one."""
        depth = len(self._lanes[DATA]) + self._coming
        outcome = self._overflow(edge, depth) if depth >= self.capacity else ACCEPTED
        if outcome is Outcome.REJECTED:
            self.rejected += 1
        else:
            self._coming += 1
            self.most_data = max(self.most_data, depth + 1)
        self._touch(arrives=False)
        return outcome

    def _touch(self, *, arrives: bool) -> None:
        """Note that the event that runs depends on this mailbox: its order, or whether there is room.

        Two events that each leave it at most half full cannot fill it together, whatever their order.
        """
        touched = self._network.touched
        if touched is not None and (arrives or (len(self._lanes[DATA]) + self._coming) * 2 > self.capacity):
            touched.add(self.name)

    def put_fenced(self, message: Any, edge: Edge) -> bool:
        """`Down`: sent now, it arrives after everything else of its sender."""
        if self._closed:
            return False
        self._network.post_farewell(self, message, edge)
        return True

    def nudge(self) -> None:
        """Also one that waits out a backoff is made to look; it is not parked."""
        super().nudge()
        self.wake()

    # ---- called by carriers ----

    def arrive(self, entry: Entry) -> None:
        """A message is here now. One that comes after the end is a dead letter."""
        message, edge, _ = entry
        self.forget(entry)
        self._touch(arrives=True)
        if self._closed:
            self._network.dead_letters.add(self.name, edge.sender, message, Reason.RECEIVER_GONE)
            return
        self._lanes[edge.lane].append(entry)
        if self._parked and (edge.lane != DATA or self._holds <= 0):
            self._parked = False
            self.wake()

    def arrive_fenced(self, message: Any, edge: Edge) -> bool:
        """`Down` is here now, behind everything that waits. False when nobody will read it."""
        self._touch(arrives=True)
        return super().put_fenced(message, edge)

    def expect(self, entry: Entry) -> None:
        """A message is on its way (again)."""
        if entry[1].lane == DATA:
            self._coming += 1

    def forget(self, entry: Entry) -> None:
        """A message is not on its way any more."""
        if entry[1].lane == DATA:
            self._coming -= 1

    # ---- looked at ----

    def route(self, edge: Edge) -> str:
        """Name of an edge: sender>receiver.LANE."""
        name = self._routes.get(edge)
        if name is None:
            name = self._routes[edge] = f"{edge.sender}>{self.name}.{Lane(edge.lane).name}"
        return name

    def taking(self, edge: Edge) -> str:
        """Name of taking a message of that edge: receiver<sender>receiver.LANE."""
        name = self._takings.get(edge)
        if name is None:
            name = self._takings[edge] = f"{self.name}<{self.route(edge)}"
        return name

    def peek(self, *, timer_is_due: bool) -> Entry | Literal[True] | None:
        """What `take` would give, with due timers in the CONTROL lane: an entry, True for a timer, None for nothing."""
        if self._fences and self._fence_passed():
            return self._fences[0][1]
        system, control, data = self._lanes
        data_first = self._streak >= BURST and data and self._holds <= 0
        if not data_first:
            if system or control:
                return system[0] if system else control[0]
            if timer_is_due:
                return True
        return data[0] if data and self._holds <= 0 else None

    def has_takeable(self) -> bool:
        """Whether `take` would give something."""
        return self._takeable()

    def is_empty(self) -> bool:
        """Whether nothing waits; what cannot be taken now waits too."""
        return not (any(self._lanes) or self._fences)

    def held_names(self) -> list[str]:
        """The actors that this mailbox holds back."""
        return [mailbox.name for mailbox in self._held if isinstance(mailbox, SimulatedMailbox)]

    def dump(self) -> str:
        """What waits, for a person."""
        waits = ", ".join(
            f"{Lane(lane).name} {[type(entry[0]).__name__ for entry in self._lanes[lane]]}"
            for lane in (SYSTEM, CONTROL, DATA)
            if self._lanes[lane]
        )
        fenced = f", {len(self._fences)} behind a fence" if self._fences else ""
        held = f", held back by {self._holds} full mailboxes" if self._holds > 0 else ""
        return f"{waits or 'nothing'}{fenced}{held}"
