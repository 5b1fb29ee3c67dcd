"""The threads of one process that read its wires, of one kind each.

    streams     two threads wait for all of them; one that has read what there was runs the actor that it woke, if that
                one may run anywhere (`Actor.roams`), and the other one reads on
    ZeroMQ      one thread, as its poll is for one

So a message over a stream wakes one thread and not two, and yet no handler, however long, keeps another's message
waiting: of the threads there is always one that runs no actor.
"""

from __future__ import annotations

import math
import os
import select
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from pawl.actors.runtime.drivers import visitor
from pawl.actors.runtime.processes.wires import SocketWire

FAR_S = 3600.0
"""Longest wait of a thread."""


class Polling(NamedTuple):
    """How threads wait for several wires."""

    poller: Any
    read: int
    write: int
    per_s: float
    """Its unit of time."""
    once: int = 0
    """Flag of what is told to one thread only, until it is asked for again; 0: it is for one thread."""


def polling_streams() -> Polling:
    """What the system has."""
    if hasattr(select, "epoll"):
        return Polling(select.epoll(), select.EPOLLIN, select.EPOLLOUT, 1.0, select.EPOLLONESHOT)
    return Polling(select.poll(), select.POLLIN, select.POLLOUT, 1000.0)


class Readers:
    """Threads that read wires (`pawl.actors.runtime.processes.wires.ReadingThread`). `close` ends them."""

    def __init__(self, polling: Polling, clock: Callable[[], float]) -> None:
        self._polling = polling
        self._clock = clock
        self._wires: list[SocketWire] = []
        self._lock = threading.Lock()
        self._pipe, self._waking = os.pipe()
        os.set_blocking(self._waking, False)
        os.set_blocking(self._pipe, False)
        polling.poller.register(self._pipe, polling.read)
        self._closing = False
        self._closed = False
        """The pipe is: its numbers may be somebody else's by now."""
        self._changed = True
        """Wires are to be looked after, and what is polled may not be what should be."""
        self._due = 0.0
        self._polled: dict[Any, SocketWire] = {}
        self._reading = threading.Lock()
        """One thread at a time reads and looks after wires; not held while it runs an actor."""
        self._num_away = 0
        """Threads that run an actor."""
        self._threads = [
            threading.Thread(target=self._run, name=f"links.{number}", daemon=True)
            for number in range(2 if polling.once else 1)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, wire: SocketWire) -> None:
        """Read it from now on."""
        with self._lock:
            self._wires.append(wire)
        self.wake()

    def wake(self) -> None:
        """Look around: something has changed."""
        self._changed = True
        with self._lock, suppress(BlockingIOError):  # it is awake
            if not self._closed:
                os.write(self._waking, b"\0")

    def close(self) -> None:
        """Close what is open, and end the threads. Not for these themselves."""
        self._closing = True
        self.wake()
        for thread in self._threads:
            thread.join()
        for wire in self._wires:
            wire.shut()
        with self._lock:
            self._closed = True
            os.close(self._pipe)
            os.close(self._waking)
        if self._polling.once:
            self._polling.poller.close()

    # ---- the threads ----

    def _run(self) -> None:
        poll, per_s = self._polling.poller.poll, self._polling.per_s
        while not self._closing:
            ready = poll(min(max(0.0, self._due - self._clock()), FAR_S) * per_s)
            with self._reading:
                visitor.may_run = self._num_away + 1 < len(self._threads)
                for which, _ in ready:
                    self._look(which)
                if self._changed or self._clock() >= self._due:
                    self._due = self._tick()
                woken = visitor.leave()
                self._num_away += woken is not None
            if woken is not None:
                try:
                    woken.visit()
                finally:
                    with self._reading:
                        self._num_away -= 1
        self.wake()  # the other one may have missed it

    def _look(self, which: Any) -> None:
        if which == self._pipe:
            with suppress(BlockingIOError):
                os.read(which, 4096)
        elif (wire := self._polled.get(which)) is not None:
            wire.look()
            if self._polling.once:
                for number, read, written in wire.polled():
                    if self._polled.get(number) is wire:
                        self._polling.poller.modify(number, self._flags(read, written))

    def _tick(self) -> float:
        """Look after all wires; when to come again."""
        self._changed = False
        with self._lock:
            wires = list(self._wires)
        due = min([wire.tick() for wire in wires if not wire.closed], default=math.inf)
        poller = self._polling.poller
        for which in self._polled:
            with suppress(OSError, KeyError):  # it is closed
                poller.unregister(which)
        for wire in wires:
            if wire.closed:
                with self._lock:
                    self._wires.remove(wire)
                wire.shut()
        with self._lock:
            waited_for = [(wire, *each) for wire in self._wires for each in wire.polled()]
        for _, which, read, written in waited_for:
            poller.register(which, self._flags(read, written))
        self._polled = {which: wire for wire, which, _, _ in waited_for}
        return due

    def _flags(self, read: bool, written: bool) -> int:
        return self._polling.once | self._polling.read * read | self._polling.write * written
