"""Frames between a process and its rank, over a pair of sockets that nobody else can reach or name.

    number of frames, length of each (8 bytes each), the frames

The end of either process closes the line, and the other one sees that at once.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

Frame: TypeAlias = bytes | bytearray | memoryview
MOST_FRAMES = 4096
"""Of one message."""
_SHORTEST_S = 0.001
_NUMBER = struct.Struct("<Q")


class LineClosed(Exception):
    """The other process has ended, or says what no process of ours does."""


class LineTimeout(Exception):
    """Nothing has come in time."""


class Link:
    """One end of a line."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end

    def fileno(self) -> int:
        """For the child that gets it."""
        return self.socket.fileno()

    def send(self, frames: Sequence[Frame], limit_s: float | None = None) -> None:
        """Send one message. Raises LineClosed, or LineTimeout when the other end does not take it in time."""
        head = b"".join(map(_NUMBER.pack, [len(frames), *map(len, frames)]))
        try:
            self.socket.settimeout(limit_s)
            for part in (head, *frames):
                self.socket.sendall(part)
        except TimeoutError as error:
            raise LineTimeout from error
        except OSError as error:
            raise LineClosed(str(error)) from error

    def receive(self, limit_s: float | None = None) -> list[bytearray]:
        """The next message. Raises LineClosed, or LineTimeout when it has not come whole within `limit_s` seconds."""
        until = None if limit_s is None else time.monotonic() + limit_s
        (count,) = _NUMBER.unpack(self._read(_NUMBER.size, until))
        if count > MOST_FRAMES:
            raise LineClosed(f"a message of {count} frames")
        lengths = [_NUMBER.unpack(self._read(_NUMBER.size, until))[0] for _ in range(count)]
        return [self._read(length, until) for length in lengths]

    def _read(self, length: int, until: float | None) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while view:
            try:
                # 0 would mean not to wait at all.
                self.socket.settimeout(None if until is None else max(_SHORTEST_S, until - time.monotonic()))
                count = self.socket.recv_into(view)
            except TimeoutError as error:
                raise LineTimeout from error
            except OSError as error:
                raise LineClosed(str(error)) from error
            if not count:
                raise LineClosed("the other end has closed it")
            view = view[count:]
        return data

    def shut(self) -> None:
        """Let whoever waits for it, here or there, wait no more."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """When nobody waits for it."""
        self.socket.close()
