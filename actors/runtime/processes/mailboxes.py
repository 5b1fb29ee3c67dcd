"""The two ends of a way between processes.

    sender ─ put ─► Outbox ─ next ─► ....... link ....... ─► LinkedMailbox ─ take ─► receiver
                      ▲                                            │
                      └────────────── credits: so many were taken ─┘

An `Outbox` stands for the mailbox of an actor elsewhere: what it refuses, and whom it holds back, is what that mailbox
would. It keeps DATA until its receiver has taken it, so what is full here is the receiver, whatever sockets hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.runtime.mailbox import (
    ACCEPTED,
    BURST,
    CONTROL,
    DATA,
    SYSTEM,
    Edge,
    Entry,
    Mailbox,
    Outcome,
    release_all,
)


class Outbox(Mailbox):
    """What waits for an actor elsewhere, is on its way to it, or waits there as DATA."""

    def __init__(self, capacity: int, overflow: Overflow, on_fence: Callable[[], None]) -> None:
        """`on_fence` is called when something stands behind DATA that was not taken yet."""
        super().__init__(capacity, overflow)
        self._on_fence = on_fence
        self._num_sent = 0
        """DATA on its way or there: the first of the lane. At most `capacity`, beyond which no credit is."""

    def next(self) -> Entry | None:
        """The next message to be sent; None when there is none, or no credit for it."""
        with self._lock:
            if self._fences and self._fence_passed():
                return self._fences.popleft()[1]
            system, control, data = self._lanes
            has_data = self._has_data()
            if (system or control) and not (has_data and self._streak >= BURST):
                self._streak = self._streak + 1 if has_data else 0
                lane = SYSTEM if system else CONTROL
                self.taken[lane] += 1
                return self._lanes[lane].popleft()
            if not has_data:
                return None
            self._streak = 0
            self._num_sent += 1
            return data[self._num_sent - 1]

    def credit(self, taken: int) -> None:
        """The receiver has taken so many DATA messages. Raises ValueError for more than it was sent."""
        with self._lock:
            count = taken - self.taken[DATA]
            if not 0 <= count <= self._num_sent:
                raise ValueError(f"{taken} taken, of {self.taken[DATA] + self._num_sent} that were sent")
            for _ in range(count):
                self._lanes[DATA].popleft()
            self._num_sent -= count
            self.taken[DATA] = taken
            released: list[Mailbox] = []
            if len(self._lanes[DATA]) <= self.capacity // 2:
                released, self._held = self._held, []
            wakes = self._parked and self._takeable()
            self._parked = self._parked and not wakes
        release_all(released)
        if wakes:
            self.wake()

    def close_sent(self) -> list[Entry]:
        """Close, and give back what was not sent: the rest is counted where it is."""
        with self._lock:
            for _ in range(self._num_sent):
                self._lanes[DATA].popleft()
            self._num_sent = 0
        return self.close()

    def put_fenced(self, message: Any, edge: Edge) -> bool:
        if self._lanes[DATA]:
            self._on_fence()
        return super().put_fenced(message, edge)

    def _has_data(self) -> bool:
        return self._num_sent < min(len(self._lanes[DATA]), self.capacity)

    def _takeable(self) -> bool:
        system, control, _ = self._lanes
        return bool(system or control) or self._has_data() or (bool(self._fences) and self._fence_passed())


class Flow:
    """Credits of one receiver for one link."""

    __slots__ = ("batch", "dropped", "owe", "receiver", "taken", "told")

    def __init__(self, receiver: str, capacity: int, owe: Callable[[Flow], None]) -> None:
        self.receiver = receiver
        self.taken = 0
        """DATA messages of the link that the receiver has taken; written by the receiver."""
        self.dropped = 0
        """Those that no receiver could be given; written by the link."""
        self.told = 0
        """How many of both the other side knows of."""
        self.batch = max(1, capacity // 4)
        """Taken messages that are told together: often enough that a sender is never held back for want of news."""
        self.owe = owe

    def add(self) -> None:
        """One more was taken."""
        self.taken += 1
        if self.total() - self.told >= self.batch:
            self.owe(self)

    def drop(self) -> None:
        """One came that no receiver can be given."""
        self.dropped += 1
        self.owe(self)

    def total(self) -> int:
        """Credits given back."""
        return self.taken + self.dropped


class Inbound(Edge):
    """An edge that comes from another process."""

    __slots__ = ("arrived", "flow")

    def __init__(self, sender: str, lane: Lane, flow: Flow) -> None:
        super().__init__(sender, lane, None)
        self.arrived = 0
        """Number of the last message that came over the link."""
        self.flow = flow


class LinkedMailbox(Mailbox):
    """The mailbox of an actor here, which may be sent to from elsewhere."""

    def take(self) -> Entry | None:
        entry = super().take()
        if entry is not None and isinstance(edge := entry[1], Inbound) and edge.lane == DATA:
            edge.flow.add()
        return entry

    def _overflow(self, edge: Edge, depth: int) -> Outcome:
        # It was refused, or its sender held back, where it was sent: what has a credit has room.
        return ACCEPTED if isinstance(edge, Inbound) else super()._overflow(edge, depth)
