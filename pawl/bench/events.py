"""Server-sent events, as far as streamed completions use them."""

from __future__ import annotations

DONE = b"[DONE]"
"""The data of the last event."""
_FIELD = b"data:"


def event_data(line: bytes) -> bytes | None:
    """The data that one line of a stream carries; None for blank lines, comments and other fields."""
    return line[len(_FIELD) :].strip() if line.startswith(_FIELD) else None
