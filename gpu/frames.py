"""What a process and its child say to each other: messages, a length of 4 bytes and so many bytes."""

from __future__ import annotations

import os
import sys
from typing import IO


def streams_of_child() -> tuple[IO[bytes], IO[bytes]]:
    """Where a child reads and writes its frames. What is printed from now on, also by a library that knows nothing of
    Python, goes where errors go."""
    target = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return sys.stdin.buffer, target


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
