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
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pawl.actors.runtime.actor import Lane
from pawl.actors.runtime.dead_letters import DeadLetters, Reason
from pawl.actors.runtime.mailbox import Edge, Entry, Mailbox

if TYPE_CHECKING:
    from pawl.actors.simulation.mailbox import SimulatedMailbox
from pawl.actors.simulation.choice import LINE, Option

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

    def __init__(self, network: Network, owner: str, ends: tuple[str, str] | None = None) -> None:
        """`ends`: sender and receiver, of a wire."""
        self.owner = owner
        self.is_wire = ends is not None
        self.ends = ends or (owner, owner)
        self._lined_up = False
        self.envelopes: deque[Envelope] = deque()
        self.on_empty: Callable[[], None] = lambda: None
        self._network = network

    @property
    def label(self) -> str:
        mailbox, (_, edge, _) = self.envelopes[0]
        return mailbox.route(edge)

    @property
    def event(self) -> tuple[str, int]:
        return self.label, self.envelopes[0].entry[2]

    @property
    def target(self) -> str:
        return self.envelopes[0].mailbox.name

    def add(self, envelope: Envelope) -> None:
        """The sender has sent one more."""
        if self.is_wire and self._network.drops(*self.ends):
            envelope.mailbox.forget(envelope.entry)
            return
        self.envelopes.append(envelope)
        self.line_up()
        if self.is_wire:
            self._touch(envelope)

    def _touch(self, envelope: Envelope) -> None:
        """Note that sending a message comes before its arrival. On a wire, only of the same message."""
        touched = self._network.touched
        if touched is not None:
            touched.add(f"{LINE}{self.owner}#{envelope.entry[2]}" if self.is_wire else LINE + self.owner)

    def line_up(self) -> None:
        """Among the ready events where its first message may arrive, else not."""
        may = len(self.envelopes) > 0 and not (self.is_wire and self._network.holds(*self.ends))
        if may == self._lined_up:
            return
        self._lined_up = may
        # Fair is: a handler's messages arrive before anybody else does anything.
        if not may:
            self._network.ready.remove(self)
        elif self.is_wire:
            self._network.ready.append(self)
        else:
            self._network.ready.insert(0, self)

    def take_out(self) -> None:
        """Leave the ready events, to happen in another way than by `run`."""
        self._network.ready.remove(self)
        self._lined_up = False

    def run(self) -> None:
        """The first message arrives."""
        self._lined_up = False
        mailbox, entry = self._pop()
        mailbox.arrive(entry)
        self.after_one()

    def arrive(self, count: int) -> None:
        """The first so many messages arrive, whatever holds them."""
        for _ in range(count):
            mailbox, entry = self._pop()
            mailbox.arrive(entry)

    def lose(self) -> None:
        """The first message never arrives."""
        mailbox, entry = self._pop()
        mailbox.forget(entry)
        self.after_one()

    def lose_all(self) -> None:
        """None of its messages arrives."""
        while self.envelopes:
            mailbox, entry = self._pop()
            mailbox.forget(entry)
        self.line_up()
        self.on_empty()

    def double(self) -> None:
        """The first message arrives, and will arrive again."""
        mailbox, entry = self.envelopes[0]
        mailbox.arrive(entry)
        mailbox.expect(entry)
        self.line_up()

    def _pop(self) -> Envelope:
        envelope = self.envelopes.popleft()
        if self._network.touched is not None:
            self._network.touched.add(LINE + self.owner)
            self._touch(envelope)
        return envelope

    def after_one(self) -> None:
        """The first message has left: on with the next, or the sender may go on."""
        self.line_up()
        if not self.envelopes:
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
        self._network.num_notices -= 1
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
        self.holds: IsWire = no_wires
        """Whether nothing arrives on this wire for now."""
        self.refuses: IsWire = no_wires
        """Whether what is sent on it is refused."""
        self.drops: IsWire = no_wires
        """Whether what is sent on it is lost."""
        self._is_wire = is_wire
        self._preempt = preempt
        self._notices: list[DownNotice] = []
        """Those with something before them."""
        self.num_notices = 0
        """All that have not arrived."""

    def add_outbox(self, mailbox: Mailbox, owner: str) -> Carrier | None:
        """The outbox of the actor that reads `mailbox`; None when its messages arrive at once."""
        if not self._preempt:
            return None
        outbox = self.outboxes[mailbox] = Carrier(self, owner)
        return outbox

    def carrier(self, edge: Edge, receiver: str) -> Carrier | None:
        """What carries messages along an edge; None: they arrive at once."""
        if edge.sender != receiver and self._is_wire(edge.sender, receiver):
            wire = Carrier(self, f"{edge.sender}>{receiver}.{Lane(edge.lane).name}", (edge.sender, receiver))
            self.wires.append(wire)
            return wire
        # Timers, and senders outside, are not in the middle of a handler.
        return None if edge.sender_mailbox is None else self.outboxes.get(edge.sender_mailbox)

    def cut(self, is_cut: IsWire) -> None:
        """What is on its way on these wires never arrives."""
        for wire in self.wires:
            if wire.envelopes and is_cut(*wire.ends):
                wire.lose_all()
        self.send_off()

    def post_down(self, mailbox: SimulatedMailbox, message: Any, edge: Edge) -> None:
        """Send `Down` behind everything else of its sender."""
        self._notices.append(DownNotice(self, mailbox, message, edge))
        self.num_notices += 1
        self.send_off()

    def send_off(self) -> None:
        """Make those notices ready that have nothing before them any more."""
        if not self._notices:
            return
        for notice in tuple(self._notices):
            if not self._on_the_way(notice.edge.sender, notice.mailbox):
                self._notices.remove(notice)
                self.ready.append(notice)

    def _on_the_way(self, sender: str, mailbox: SimulatedMailbox) -> bool:
        return any(
            envelope.mailbox is mailbox and envelope.entry[1].sender == sender
            for carrier in (*self.outboxes.values(), *self.wires)
            for envelope in carrier.envelopes
        )

    def carries_of(self, sender: str) -> bool:
        """Whether something that this actor said is on a wire."""
        return any(wire.envelopes and wire.envelopes[0].entry[1].sender == sender for wire in self.wires)

    def num_on_the_way(self) -> int:
        """Messages that have not arrived."""
        return sum(len(carrier.envelopes) for carrier in (*self.outboxes.values(), *self.wires)) + self.num_notices
