"""A context for one actor by itself: records what it sends and lets a test say who refuses and what time it is."""

from __future__ import annotations

import random
from typing import Any, NamedTuple

from pawl.actors.runtime.actor import Lane


class Sent(NamedTuple):
    to: str
    message: Any
    lane: Lane


class RecordingTimer:
    """What `after` returns; `delay_s` and `message` are what was asked for."""

    def __init__(self, delay_s: float, message: Any) -> None:
        self.delay_s = delay_s
        self.message = message
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class RecordingContext:
    """Everything sent is in `sent`; sends to a name in `full` are refused and not recorded."""

    def __init__(self, name: str = "actor", seed: int = 0) -> None:
        self.name = name
        self.time_s = 100.0
        self.wall_s = 1_700_000_000.0
        self.sent: list[Sent] = []
        self.timers: list[RecordingTimer] = []
        self.full: set[str] = set()
        self._random = random.Random(seed)

    def now(self) -> float:
        return self.time_s

    def wall(self) -> float:
        return self.wall_s

    @property
    def random(self) -> random.Random:
        return self._random

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        if to in self.full and lane is Lane.DATA:
            return False
        self.sent.append(Sent(to, message, lane))
        return True

    def after(self, delay_s: float, message: Any) -> RecordingTimer:
        timer = RecordingTimer(delay_s, message)
        self.timers.append(timer)
        return timer

    def take(self, to: str) -> list[Any]:
        """The messages sent to `to` so far, which are then forgotten."""
        messages = [sent.message for sent in self.sent if sent.to == to]
        self.sent = [sent for sent in self.sent if sent.to != to]
        return messages
