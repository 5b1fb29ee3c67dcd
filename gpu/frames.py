"""Messages between a process and its child: a length of 4 bytes, and so many bytes."""

from __future__ import annotations

from typing import IO


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
