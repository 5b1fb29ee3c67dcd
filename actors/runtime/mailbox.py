"""The mailbox of one actor: three lanes, one lock, and a flag that says whether its reader is parked.

    put ──► SYSTEM  ████            fences: messages that wait until all that came before them, in every lane,
    put ──► CONTROL ██████  ─ take ─► reader             has been taken (`Down` must not overtake its peer)
    put ──► DATA    ████████████ (bounded)

SYSTEM goes before CONTROL before DATA. After `BURST` messages of the higher lanes in a row one DATA message is taken,
so a stream of control messages slows data down but cannot stop it.

A handler cannot block, so a full mailbox with `Overflow.HOLD` does not block the sender either: it takes the message,
and the sender is handed no further DATA, and does not settle, until there is room again. Its own mailbox then fills,
and so on to the edge. What is beyond the bound is therefore what the senders send from one handler, and in answer to
CONTROL; `HOLD_CEILING` times the capacity is refused whatever the sender. HOLD must not be used around a cycle of
actors: they would hold each other for ever.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeAlias

from pawl.actors.runtime.actor import Lane, Overflow

BURST = 16
"""Messages of the higher lanes taken in a row before one DATA message is."""
HOLD_CEILING = 2
SYSTEM, CONTROL, DATA = int(Lane.SYSTEM), int(Lane.CONTROL), int(Lane.DATA)


class Outcome(IntEnum):
    """What became of a `put`."""

    ACCEPTED = 0
    HELD = 1
    """Accepted, and the sender must be held (`Mailbox.hold`)."""
    REJECTED = 2
    CLOSED = 3


# A name of the module costs a third of a look-up on the enum, and `put` is on the path of every message.
ACCEPTED = Outcome.ACCEPTED


class Edge:
    """One (sender, receiver, lane): order is promised along an edge, so its messages are numbered from 1."""

    __slots__ = ("delivered", "lane", "sender", "sender_mailbox", "sent")

    def __init__(self, sender: str, lane: Lane, sender_mailbox: Mailbox | None) -> None:
        self.sender = sender
        self.lane = int(lane)
        self.sender_mailbox = sender_mailbox
        """None for senders that are not actors: they cannot be held back, only refused."""
        self.sent = 0
        """Number of the last message accepted; written under the receiver's lock."""
        self.delivered = 0
        """Number of the last message handed to the receiver; written by the receiver."""


Entry: TypeAlias = tuple[Any, Edge, int]
"""(message, edge, number on the edge)"""


class Mailbox:
    """Written by any thread, read by one."""

    def __init__(self, capacity: int, overflow: Overflow) -> None:
        if capacity < 1:
            raise ValueError(f"a mailbox needs room for one message at least, not {capacity}")
        self.capacity = capacity
        self.overflow = overflow
        self.wake: Callable[[], None] = lambda: None
        """Called, outside the lock, by whoever ends the reader's parking. Set once, before the reader runs."""
        self.taken = [0, 0, 0]
        """Messages taken from each lane."""
        self.rejected = 0
        self.most_data = 0
        """The largest number of DATA messages that ever waited."""
        self._lock = threading.Lock()
        self._lanes: tuple[deque[Entry], deque[Entry], deque[Entry]] = (deque(), deque(), deque())
        self._fences: deque[tuple[tuple[int, int, int], Entry]] = deque()
        self._streak = 0
        self._parked = False
        self._nudged = False
        self._closed = False
        self._postponed = False
        self._holds = 0
        """How many full mailboxes hold this one's reader back. A release can outrun its hold: then it is -1 for a
        moment."""
        self._held: list[Mailbox] = []
        """Mailboxes of the senders this one holds back."""

    # ---- written by senders ----

    def put(self, message: Any, edge: Edge) -> Outcome:
        """Queue one message; REJECTED when DATA is full, CLOSED when nobody will read it."""
        outcome = ACCEPTED
        lane = edge.lane
        with self._lock:
            if self._closed:
                return Outcome.CLOSED
            queue = self._lanes[lane]
            if lane == DATA:
                depth = len(queue)
                if depth >= self.capacity:
                    outcome = self._overflow(edge, depth)
                    if outcome is Outcome.REJECTED:
                        self.rejected += 1
                        return outcome
                if depth >= self.most_data:
                    self.most_data = depth + 1
            edge.sent = number = edge.sent + 1
            queue.append((message, edge, number))
            # A reader that is held back from DATA stays parked: there is nothing for it to take.
            if not self._parked or (lane == DATA and self._holds > 0):
                return outcome
            self._parked = False
        self.wake()
        return outcome

    def _overflow(self, edge: Edge, depth: int) -> Outcome:
        sender = edge.sender_mailbox
        # An actor that held itself back could never make room.
        if self.overflow is Overflow.REJECT or sender is None or sender is self:
            return Outcome.REJECTED
        if depth >= self.capacity * HOLD_CEILING:
            return Outcome.REJECTED
        if sender in self._held:
            return ACCEPTED
        self._held.append(sender)
        return Outcome.HELD

    def put_fenced(self, message: Any, edge: Edge) -> bool:
        """Queue `message` behind everything that waits now, in every lane, and ahead of everything later. False when
        nobody will read it."""
        with self._lock:
            if self._closed:
                return False
            system, control, data = (self.taken[lane] + len(self._lanes[lane]) for lane in (SYSTEM, CONTROL, DATA))
            edge.sent = number = edge.sent + 1
            self._fences.append(((system, control, data), (message, edge, number)))
        self.nudge()
        return True

    def hold(self) -> None:
        """Hold this mailbox's reader back until the matching `release`."""
        with self._lock:
            self._holds += 1

    def release(self) -> None:
        """End one `hold`."""
        with self._lock:
            self._holds -= 1
            if self._postponed and self._holds <= 0:
                self._postponed = False
                self._nudged |= not self._parked
            elif not self._takeable():
                return
            if not self._parked:
                return
            self._parked = False
        self.wake()

    def postpone(self) -> bool:
        """Whether the reader, which has nothing left but to settle, is held back, as a mailbox to which it has sent
        something is full: then the last `release` wakes it."""
        with self._lock:
            self._postponed = self._holds > 0
            return self._postponed

    def nudge(self) -> None:
        """Make the reader look around, also when there is no message for it."""
        with self._lock:
            self._nudged = True
            if not self._parked:
                return
            self._parked = False
        self.wake()

    # ---- called by the reader ----

    def take(self) -> Entry | None:
        """The next message by priority; None when there is none to take."""
        released: list[Mailbox] | None = None
        with self._lock:
            if self._fences and self._fence_passed():
                return self._fences.popleft()[1]
            system, control, data = self._lanes
            data_first = self._streak >= BURST and data and self._holds <= 0
            if (system or control) and not data_first:
                # Counted only while DATA waits: what arrives later waits its turn like everything else.
                self._streak = self._streak + 1 if data else 0
                if system:
                    self.taken[SYSTEM] += 1
                    return system.popleft()
                self.taken[CONTROL] += 1
                return control.popleft()
            if not data or self._holds > 0:
                return None
            self._streak = 0
            self.taken[DATA] += 1
            entry = data.popleft()
            if not self._held or len(data) > self.capacity // 2:
                return entry
            # Half empty, not one place: holding and releasing at each message would cost a wake-up each.
            released, self._held = self._held, []
        release_all(released)
        return entry

    def _fence_passed(self) -> bool:
        before = self._fences[0][0]
        return all(taken >= count for taken, count in zip(self.taken, before, strict=True))

    def _takeable(self) -> bool:
        system, control, data = self._lanes
        if system or control or (data and self._holds <= 0):
            return True
        return bool(self._fences) and self._fence_passed()

    def park(self) -> bool:
        """Announce that the reader is about to wait for `wake`. False when there is something to look at first."""
        with self._lock:
            if self._nudged or self._takeable():
                self._nudged = False
                return False
            self._parked = True
            return True

    def unpark(self) -> bool:
        """The reader stopped waiting by itself (a timer). False when a `wake` is on its way."""
        with self._lock:
            was_parked, self._parked = self._parked, False
            return was_parked

    def close(self) -> list[Entry]:
        """Accept nothing any more and give back what was never taken. Whoever is held back is let go."""
        with self._lock:
            self._closed = True
            left = [entry for lane in self._lanes for entry in lane] + [fence[1] for fence in self._fences]
            for lane in self._lanes:
                lane.clear()
            self._fences.clear()
            released, self._held = self._held, []
        release_all(released)
        return left

    def close_if_empty(self) -> bool:
        """Close when nothing waits; False, and still open, when something does."""
        with self._lock:
            if any(self._lanes) or self._fences:
                return False
            self._closed = True
            released, self._held = self._held, []
        release_all(released)
        return True

    # ---- for statistics: read without the lock, so each number is right but the set is not one moment ----

    @property
    def waits(self) -> bool:
        """Whether any message does."""
        system, control, data = self._lanes
        return bool(system or control or data or self._fences)

    def depths(self) -> tuple[int, int, int]:
        """Waiting messages in SYSTEM, CONTROL and DATA."""
        system, control, data = self._lanes
        return len(system) + len(self._fences), len(control), len(data)


def release_all(mailboxes: list[Mailbox]) -> None:
    """Let held senders go on. Never under another mailbox's lock: two actors that hold each other would deadlock."""
    for mailbox in mailboxes:
        mailbox.release()
