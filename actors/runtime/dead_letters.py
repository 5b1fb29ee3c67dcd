"""Where messages go that reach nobody: they are counted, and the latest kept."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec
import structlog

log = structlog.get_logger("pawl.actors")

KEPT_LETTERS = 256
"""Dead letters kept for inspection; all of them are counted."""


class Reason(StrEnum):
    """Why a message reached no handler."""

    UNKNOWN_RECEIVER = "unknown_receiver"
    UNKNOWN_MESSAGE = "unknown_message"
    """Not of a type the receiver accepts."""
    RECEIVER_GONE = "receiver_gone"
    """Stopped before the message came, or cut off before it was read."""
    RECEIVER_FAILED = "receiver_failed"
    """The receiver failed while the message waited, or because of it; or its process was lost."""
    MALFORMED = "malformed"
    """Bytes from another process that are no message."""


class DeadLetter(msgspec.Struct, frozen=True, eq=False):
    """One message that reached no handler."""

    to: str
    sender: str
    message: Any
    reason: Reason


class DeadLetters:
    """Counts every dead letter and keeps the latest `KEPT_LETTERS`. Safe from any thread."""

    def __init__(self, on_letter: Callable[[DeadLetter], None] | None = None) -> None:
        self.total = 0
        self.by_receiver: Counter[str] = Counter()
        self.by_reason: Counter[Reason] = Counter()
        self._recent: deque[DeadLetter] = deque(maxlen=KEPT_LETTERS)
        self._on_letter = on_letter
        self._lock = threading.Lock()

    def add(self, to: str, sender: str, message: Any, reason: Reason) -> None:
        letter = DeadLetter(to, sender, message, reason)
        with self._lock:
            self.total += 1
            self.by_receiver[to] += 1
            self.by_reason[reason] += 1
            count = self.by_receiver[to]
            self._recent.append(letter)
        # A flood of dead letters must not become a flood of log lines: the 1st, 2nd, 4th, 8th ... are logged.
        if count & (count - 1) == 0:
            log.warning(
                "dead letter", to=to, sender=sender, message=type(message).__name__, reason=reason.value, count=count
            )
        if self._on_letter is not None:
            try:
                self._on_letter(letter)
            except Exception:
                log.exception("the dead letter callback failed", to=to, message=type(message).__name__)

    def recent(self) -> tuple[DeadLetter, ...]:
        """The latest dead letters, oldest first."""
        with self._lock:
            return tuple(self._recent)
