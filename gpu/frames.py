"""A process and its child: messages, a length of 4 bytes and so many bytes, and signals."""

from __future__ import annotations

import os
import signal
import sys
from typing import IO


def streams_of_child() -> tuple[IO[bytes], IO[bytes]]:
    """Where a child reads and writes its frames. What is printed from now on, also by a library that knows nothing of
    Python, goes where errors go."""
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, target


def ended_by_parent() -> None:
    """Signals to end change nothing from now on. Who stops a service sends them to all its processes, and the parent
    ends its children in order, once all is answered. What this process starts hears them again."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, lambda *_: None)


def write_frame(stream: IO[bytes], message: bytes) -> None:
    """Write one frame. Raises OSError."""
    stream.write(len(message).to_bytes(4, "little") + message)
    stream.flush()


def read_frame(stream: IO[bytes]) -> bytes | None:
    """Read one frame; None at the end of the stream, also in the middle of a frame."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    length = int.from_bytes(head, "little")
    body = stream.read(length)
    return body if len(body) == length else None
