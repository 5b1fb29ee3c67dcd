"""What all wires over sockets have in common: threads that send, and one that reads all wires of a process."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

import structlog

from pawl.actors.runtime.codec import Frame
from pawl.actors.runtime.processes.link import Link

log = structlog.get_logger("pawl.actors")

IN_A_ROW = 256
"""Messages read from one process before the others' are looked at."""


class ReadingThread(Protocol):
    """Reads all wires of a process."""

    def add(self, wire: SocketWire) -> None:
        """Read it from now on."""

    def wake(self) -> None:
        """Look around: something has changed."""


class SocketWire(ABC):
    """A `Wire`. Closed by the thread that reads it."""

    def __init__(self, thread: ReadingThread, address: str) -> None:
        self.address = address
        """Where one of the two processes waits for the other."""
        self.blocked = False
        """No more is taken; until it is, sending is up to the thread that reads."""
        self.closed = False
        self._thread = thread
        self._linger_s = 0.0
        self._link: Link | None = None
        self._sending = threading.Lock()
        """Nothing is closed while it is sent to."""

    def carry(self, link: Link) -> None:
        self._link = link
        self._thread.add(self)

    def send(self, frames: Sequence[Frame]) -> bool:
        with self._sending:
            if self.blocked or self.closed:
                return False
            return self._send(frames)

    def wake(self) -> None:
        self._thread.wake()

    def close(self, linger_s: float) -> None:
        self._linger_s = linger_s
        self.closed = True
        self._thread.wake()

    # ---- the thread that reads ----

    def look(self) -> None:
        """Take what has come, and go on with what could not be sent."""
        assert self._link is not None
        self._take(self._link)
        if self.blocked and not self.closed:
            with self._sending:
                self.blocked = not self._unblocked()
            if not self.blocked:
                self._thread.wake()
                self._link.pump()

    def tick(self) -> float:
        """When to tick again."""
        assert self._link is not None
        return self._link.tick()

    def _block(self) -> None:
        self.blocked = True
        self._thread.wake()

    def _hear(self, link: Link, frames: Sequence[Frame]) -> None:
        try:
            link.receive(frames)
        except Exception as error:
            log.exception("what came from a process could not be handled", process=link.peer)
            link.ends(f"what it said could not be handled: {type(error).__name__}")

    @abstractmethod
    def polled(self) -> list[tuple[Any, bool, bool]]:
        """What is waited for now: sockets or their numbers, each to be (read, written)."""

    @abstractmethod
    def _send(self, frames: Sequence[Frame]) -> bool:
        """Whether they are on their way. Says `_block` once no more is taken."""

    @abstractmethod
    def _take(self, link: Link) -> None:
        """Give the link what has come, `IN_A_ROW` messages at most."""

    @abstractmethod
    def _unblocked(self) -> bool:
        """Whether more is taken again."""

    @abstractmethod
    def shut(self) -> None:
        """Close all."""
