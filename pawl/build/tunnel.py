"""The lines of a rank on another host: what its replica and an outpost there say to each other, over their link.

    group ── socket ── Tunnel ══ Piece, Piece, … ══ Tunnel ── socket ── rank

A rank and its group see two lines, as where both are on one host; none of them knows of hosts.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread

import msgspec
import numpy as np
from numpy.typing import NDArray

PIECE_BYTES = 1 << 18
"""Read at once. Heartbeats have to come between pieces."""
STEPS, BESIDE = 0, 1
"""Lines of a rank."""


class EndRanks(msgspec.Struct, frozen=True, tag=True):
    """End those of this start."""

    life: int


class Piece(msgspec.Struct, frozen=True, tag=True, eq=False):
    """Bytes on a line, in either direction."""

    life: int
    rank: int
    line: int
    data: NDArray[np.uint8]


class RankEnded(msgspec.Struct, frozen=True, tag=True):
    """It has, behind all that it said, or cannot be started; see `RankLost`."""

    life: int
    rank: int
    why: str
    blameless: bool


class Tunnel:
    """One end of a line, as messages. Its two threads end with the socket, which they close."""

    def __init__(
        self,
        name: str,
        end: socket.socket,
        say: Callable[[NDArray[np.uint8]], None],
        closed: Callable[[], None] = lambda: None,
    ) -> None:
        """`say` gets what comes out of the socket, and `closed` is called at its end."""
        self._end, self._say, self._closed = end, say, closed
        self._come: SimpleQueue[NDArray[np.uint8] | None] = SimpleQueue()
        self._threads = [Thread(target=body, name=name, daemon=True) for body in (self._read, self._write)]
        for thread in self._threads:
            thread.start()

    def put(self, data: NDArray[np.uint8]) -> None:
        """Write it to the socket, when that takes it."""
        self._come.put(data)

    def finish(self) -> None:
        """Nothing more comes: end the socket behind what has."""
        self._come.put(None)

    def _read(self) -> None:
        with suppress(OSError):
            while data := self._end.recv(PIECE_BYTES):
                self._say(np.frombuffer(data, np.uint8))
        self._end.close()
        self._closed()

    def _write(self) -> None:
        with suppress(OSError):
            while (data := self._come.get()) is not None:
                self._end.sendall(data.data)
        with suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
