"""Answers to control messages (the messages themselves: `actors/control/`), and the heartbeat of the loop."""

from __future__ import annotations

from typing import Any

import msgspec

LATE = "did not answer within"
"""Words of a reply that the asker makes when its time is over."""


class Reply(msgspec.Struct, frozen=True, tag=True, eq=False):
    """scheduler -> who asked: what became of a control message. The ticket is that of the ask."""

    ticket: int
    ok: bool
    message: str = ""
    body: dict[str, Any] = msgspec.field(default_factory=dict)
    unserved: bool = False
    """Nobody answered, in time or at all: whoever asked has made this up, or the scheduler stops."""


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> watchdog, at regular times: the scheduler handles its messages."""

    oldest_launch_s: float | None
    """Age of the oldest step in flight, seconds."""


class Stalled(msgspec.Struct, frozen=True, tag=True):
    """watchdog -> gateway: the engine's loop is slow, or, with zeros, no longer."""

    seconds: float
    """For how long it has not moved, once that is a stall (health turns 503); 0 before that."""
    oldest_step_s: float = 0.0
    """Age of the oldest step in flight."""
    silent_s: float = 0.0
    """For how long the scheduler has handled no message."""
    replica: int = 0


class Pulse(msgspec.Struct, frozen=True, tag=True):
    """watchdog -> gateway, at regular times: how late it is handled tells for how long the event loop stood still."""

    sent_at: float
    """Monotonic seconds."""


class TraceLoss(msgspec.Struct, frozen=True, tag=True):
    """recorder, or who sends records to it -> gateway (CONTROL): records of the trace are being lost, or no longer."""

    source: str
    """Who loses them."""
    trouble: str
    """Why; empty: none are lost now."""
    num_lost: int
    """By this source, since the start."""
