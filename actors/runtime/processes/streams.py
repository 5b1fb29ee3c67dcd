"""A wire between two processes of one host: one stream socket, which the sending thread writes to itself.

    number of frames (4 bytes) ─ length of each (4 bytes) ─ the frames

Nobody stands between the two processes, so a message wakes one thread of the receiver, and the end of either process is
seen by the other one at once. The name at which one waits is gone as soon as the other has come.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

import numpy as np

from pawl.actors.runtime.codec import Frame
from pawl.actors.runtime.drivers import visitor
from pawl.actors.runtime.processes.frames import MOST_BYTES, MOST_FRAMES
from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.wires import IN_A_ROW, ReadingThread, SocketWire

AT_ONCE_BYTES = 1 << 16
"""Messages up to this are copied into one piece. Larger ones are written from where they lie, and read to where they
stay."""
MOST_PARTS = 512
"""Given to the system in one call."""
_COUNT = struct.Struct("<I")


class Broken(Exception):
    """What came is no message, so nothing after it can be read either."""


class StreamWire(SocketWire):
    """Either waits at `path`, and takes the first one who comes, or goes there."""

    def __init__(self, thread: ReadingThread, path: str, *, waits: bool) -> None:
        """Raises OSError where it cannot be."""
        super().__init__(thread, f"ipc://{path}")
        self._path = path
        self._waits = waits
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            if waits:
                self._socket.bind(path)
                self._socket.listen(1)
            else:
                self._socket.connect(path)
        except OSError as error:
            self._socket.close()
            raise OSError(error.errno, f"{self.address}: {os.strerror(error.errno or 0)}") from error
        self._socket.setblocking(False)
        self.blocked = waits
        self._ended = False
        """Nothing comes any more."""
        self._unsent: list[memoryview] = []
        self._incoming = Incoming()

    def polled(self) -> list[tuple[Any, bool, bool]]:
        if self._ended:
            return []
        return [(self._socket.fileno(), True, self.blocked and not self._waits)]

    def _send(self, frames: Sequence[Frame]) -> bool:
        lengths = [len(frame) for frame in frames]
        head = _COUNT.pack(len(lengths)) + _lengths(len(lengths)).pack(*lengths)
        if sum(lengths) <= AT_ONCE_BYTES:
            self._unsent = [memoryview(b"".join((head, *frames)))]
        else:
            self._unsent = [memoryview(part).cast("B") for part in (head, *frames)]
        if not self._unblocked():
            self._block()
        return True

    def _unblocked(self) -> bool:
        if self._waits:
            return False
        try:
            while self._unsent:
                self._unsent = after(self._unsent, self._socket.sendmsg(self._unsent[:MOST_PARTS]))
        except BlockingIOError:
            return False
        except OSError:
            # Nobody is there any more, which the thread that reads finds out after all that was said before.
            self._unsent = []
        return True

    def _take(self, link: Link) -> None:
        try:
            if self._waits:
                self._accept()
            for _ in range(IN_A_ROW if not self._ended else 0):
                for frames in self._incoming.read(self._socket):
                    self._hear(link, frames)
                if self._incoming.is_dry:
                    return
                visitor.stays()
        except BlockingIOError:
            return
        except (OSError, EOFError):
            self._end(link, "its end of the link is closed")
        except Broken as error:
            link.receive(())  # which counts it
            self._end(link, str(error))

    def _accept(self) -> None:
        listener = self._socket
        self._socket, _ = listener.accept()
        self._socket.setblocking(False)
        listener.close()
        self._waits = False
        self._remove()

    def _end(self, link: Link, reason: str) -> None:
        self._ended = True
        link.hung_up(reason)

    def _remove(self) -> None:
        with suppress(OSError):
            os.unlink(self._path)

    def shut(self) -> None:
        with self._sending:
            self.closed = True
            if self._waits:
                self._remove()
            elif self._unsent:
                self._socket.settimeout(self._linger_s)
                with suppress(OSError):
                    self._socket.sendall(b"".join(self._unsent))
            self._unsent = []
            self._socket.close()


class Incoming:
    """Messages out of a stream."""

    def __init__(self) -> None:
        self.is_dry = True
        """There was no more to be read than what was."""
        self._rest = b""
        """The beginning of a message."""
        self._frames: list[memoryview] = []
        """Of a large message, as far as it has come."""
        self._missing: list[memoryview] = []
        """What is to be filled in there."""

    def read(self, source: socket.socket) -> list[Sequence[Frame]]:
        """Those that are whole after one more reading. Raises BlockingIOError where nothing has come, EOFError at the
        end, OSError, and Broken for what is no message."""
        if self._missing:
            count = source.recvmsg_into(self._missing[:MOST_PARTS])[0]
            self.is_dry = False
            self._missing = after(self._missing, count)
            if not count:
                raise EOFError
            if self._missing:
                return []
            frames, self._frames = self._frames, []
            return [frames]
        chunk = source.recv(AT_ONCE_BYTES)
        if not chunk:
            raise EOFError
        self.is_dry = len(chunk) < AT_ONCE_BYTES
        return self._messages(self._rest + chunk if self._rest else chunk)

    def _messages(self, chunk: bytes) -> list[Sequence[Frame]]:
        at, self._rest = 0, b""
        messages: list[Sequence[Frame]] = []
        while at < len(chunk):
            if (found := _head(chunk, at)) is None:
                break
            lengths, begin = found
            if begin + sum(lengths) > len(chunk):
                if sum(lengths) > AT_ONCE_BYTES:
                    self._begin(lengths, memoryview(chunk)[begin:])
                    return messages
                break
            frames = []
            for length in lengths:
                frames.append(chunk[begin : begin + length])
                begin += length
            at = begin
            messages.append(frames)
        self._rest = chunk[at:]
        return messages

    def _begin(self, lengths: Sequence[int], beginning: memoryview) -> None:
        """Make room for a large message, whose beginning has come: for each frame by itself, so it is aligned."""
        self._frames = [np.empty(length, np.uint8).data if length else memoryview(b"") for length in lengths]
        self._missing = [frame for frame in self._frames if len(frame)]
        while len(beginning):
            first = self._missing[0]
            count = min(len(first), len(beginning))
            first[:count] = beginning[:count]
            self._missing, beginning = after(self._missing, count), beginning[count:]


def _head(chunk: bytes, at: int) -> tuple[Sequence[int], int] | None:
    """Lengths of the frames of the message at `at`, and where they begin; None: not all of that has come."""
    if len(chunk) < at + _COUNT.size:
        return None
    (count,) = _COUNT.unpack_from(chunk, at)
    if not 0 < count <= MOST_FRAMES:
        raise Broken(f"a message of {count} frames")
    layout = _lengths(count)
    begin = at + _COUNT.size + layout.size
    if len(chunk) < begin:
        return None
    lengths = layout.unpack_from(chunk, at + _COUNT.size)
    if max(lengths) > MOST_BYTES:
        raise Broken(f"a frame of {max(lengths)} bytes")
    return lengths, begin


@lru_cache(maxsize=256)
def _lengths(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}I")


def after(parts: list[memoryview], count: int) -> list[memoryview]:
    """What is left of them behind so many bytes; no part of it is empty."""
    for at, part in enumerate(parts):
        if count < len(part):
            return [part[count:], *parts[at + 1 :]]
        count -= len(part)
    return []
