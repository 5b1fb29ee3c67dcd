"""Control messages: flush, state, heartbeats. Each ask carries a `ticket`; the answer carries it back."""

from __future__ import annotations

from typing import Any

import msgspec


class FlushCache(msgspec.Struct, frozen=True, tag=True):
    """Empty the prefix cache. `timeout_s` 0: now or refuse with what is live; > 0: wait for rest that long, then
    refuse. Loses no request."""

    ticket: int
    timeout_s: float = 0.0
    reply_to: str = "gateway"


class GetState(msgspec.Struct, frozen=True, tag=True):
    """Ask for a dump of queues, table, memory and counters."""

    ticket: int
    reply_to: str = "gateway"
    detail: bool = False


class Reply(msgspec.Struct, frozen=True, tag=True, eq=False):
    """Answer to an ask."""

    ticket: int
    ok: bool
    message: str = ""
    body: dict[str, Any] = msgspec.field(default_factory=dict)


class Heartbeat(msgspec.Struct, frozen=True, tag=True):
    """scheduler -> watchdog, at regular times: the scheduler handles its messages."""

    oldest_launch_s: float | None
    """Age of the oldest step in flight, seconds."""


class Stalled(msgspec.Struct, frozen=True, tag=True):
    """watchdog -> gateway: the loop has not moved for `seconds` (health turns 503); seconds 0: it moves again."""

    seconds: float


class Drain(msgspec.Struct, frozen=True, tag=True):
    """Stop taking requests; end what is left after `grace_s` with cause `drained`."""

    grace_s: float
