"""The mailbox of an actor in a simulated run: a real one, whose messages arrive when they are chosen to."""

from __future__ import annotations

from typing import Any, Literal

from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.runtime.mailbox import ACCEPTED, BURST, CONTROL, DATA, SYSTEM, Edge, Entry, Mailbox, Outcome
from pawl.actors.simulation.network import Carrier, Envelope, Network


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
        if self._closed or (carrier.is_wire and self._network.refuses(*carrier.ends)):
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
        self._network.post_down(self, message, edge)
        return True

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
