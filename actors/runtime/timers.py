"""Timers of one actor: a heap owned by the thread that runs the actor, so it needs no lock."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

FEWEST_TO_COMPACT = 64


class ActorTimer:
    """One message an actor sends itself later. Due timers wait in the mailbox like any other control message; a
    timer cancelled there is still never delivered."""

    __slots__ = ("_queue", "message")

    def __init__(self, queue: TimerQueue, message: Any) -> None:
        self._queue: TimerQueue | None = queue
        self.message = message

    def cancel(self) -> None:
        """Never deliver it. Does nothing when it was delivered or cancelled before."""
        if self._queue is not None:
            self._queue.num_cancelled += 1
            self._queue = None

    @property
    def cancelled(self) -> bool:
        """Cancelled, or delivered already."""
        return self._queue is None

    def claim(self) -> bool:
        """Whether to deliver it now; True once at the most."""
        wanted = self._queue is not None
        self._queue = None
        return wanted


class TimerQueue:
    """Timers ordered by due time, then by the order in which they were set."""

    def __init__(self) -> None:
        self.num_cancelled = 0
        self.heap: list[tuple[float, int, ActorTimer]] = []
        """When each is due, its number, and the timer: the earliest first."""
        self._sequence = 0

    def __len__(self) -> int:
        return len(self.heap)

    def add(self, due: float, message: Any) -> ActorTimer:
        """Set a timer for monotonic time `due`, seconds."""
        timer = ActorTimer(self, message)
        self._sequence += 1
        # Deadlines of requests that ended early are cancelled long before they are due; without this the heap would
        # grow with the request rate times the longest deadline.
        if self.num_cancelled >= FEWEST_TO_COMPACT and self.num_cancelled * 2 > len(self.heap):
            self.heap = [entry for entry in self.heap if not entry[2].cancelled]
            heapq.heapify(self.heap)
            self.num_cancelled = 0
        heapq.heappush(self.heap, (due, self._sequence, timer))
        return timer

    def messages(self) -> Iterator[Any]:
        """Of the timers that are still wanted."""
        return (timer.message for _, _, timer in self.heap if not timer.cancelled)

    def next_due(self) -> float | None:
        """Monotonic seconds of the earliest timer still wanted; None when there is none."""
        heap = self.heap
        while heap and heap[0][2]._queue is None:  # cancelled: in half the time
            heapq.heappop(heap)
            self.num_cancelled = max(0, self.num_cancelled - 1)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> ActorTimer | None:
        """Take out the earliest timer that is due at `now`."""
        due = self.next_due()
        if due is None or due > now:
            return None
        return heapq.heappop(self.heap)[2]

    def forget(self) -> None:
        """Drop all timers that are not due yet."""
        self.num_cancelled = 0
        self.heap.clear()
