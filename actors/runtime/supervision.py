"""What happens when a handler raises, and where messages go that reach nobody.

One for one: the actor that failed is replaced by a fresh one from its factory, at most `max_restarts` times in
`within_s` seconds, each time after a longer pause; after that (or without a policy) the failure escalates. The message
that killed an instance is given to the next one first. If it kills that one too it is put in quarantine: it becomes a
dead letter and is never delivered again, so one poisoned message cannot use up a replica.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import msgspec
import structlog

from pawl.actors.runtime.actor import Actor

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
    """The receiver's failure escalated while the message waited, or because of it."""
    QUARANTINED = "quarantined"
    """Killed its receiver twice."""
    LATE_REPLY = "late_reply"
    """The ask it answers has timed out, or never was."""


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


class Restart(msgspec.Struct, frozen=True, kw_only=True):
    """One-for-one policy of one actor.

    A fresh instance starts from nothing and its peers are not told, so this suits actors whose state is in their
    messages. An actor that keeps state its peers rely on is spawned without a policy: its peers then see `Down`.
    """

    factory: Callable[[], Actor]
    max_restarts: int = 3
    within_s: float = 60.0
    backoff_s: float = 0.1
    """Pause before the first restart; doubled for each one inside the window."""
    max_backoff_s: float = 5.0

    def __post_init__(self) -> None:
        if self.max_restarts < 1:
            raise ValueError(f"max_restarts is {self.max_restarts}; a policy that never restarts is no policy")
        if self.within_s <= 0.0 or not 0.0 <= self.backoff_s <= self.max_backoff_s:
            raise ValueError("within_s must be above 0, and backoff_s between 0 and max_backoff_s")


class RestartBudget:
    """Restarts used and left under one policy."""

    def __init__(self, policy: Restart) -> None:
        self.policy = policy
        self.restarts = 0
        """Restarts granted in all."""
        self._granted_at: deque[float] = deque()

    def spend(self, now: float) -> float | None:
        """Ask for one restart at time `now` (monotonic seconds): the pause before it, or None to escalate."""
        while self._granted_at and now - self._granted_at[0] > self.policy.within_s:
            self._granted_at.popleft()
        used = len(self._granted_at)
        if used >= self.policy.max_restarts:
            return None
        self._granted_at.append(now)
        self.restarts += 1
        return min(self.policy.backoff_s * 2.0**used, self.policy.max_backoff_s)
