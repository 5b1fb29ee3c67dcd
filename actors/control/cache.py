"""The prefix cache."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from pawl.actors.control_row import Row, Source, Who
from pawl.actors.gathering import merged
from pawl.actors.messages.control import Reply
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.loops.orders.cache import FlushCache


class FlushReply(msgspec.Struct, frozen=True):
    """Whether the cache was emptied, and what was live then."""

    success: bool
    message: str
    waiting: int
    running: int
    in_flight: int
    paused: bool
    released: tuple[MemoryTag, ...] = ()


def _drawn(source: Source) -> FlushCache | None:
    return FlushCache(source.pick((0.0, 0.5))) if source.chance(0.3) else None


def _check(body: FlushCache, reply: Reply) -> str | None:
    still = reply.body.get("paused", False) or reply.body.get("released")
    live = {name: reply.body.get(name, 0) for name in ("waiting", "running", "in_flight")}
    if reply.ok and (live["running"] or live["in_flight"] or (live["waiting"] and not still)):
        return f"the cache was emptied while something was live: {reply.body}"
    if not reply.ok and not any(live.values()):
        return f"refused, and nothing was live: {reply.message}"
    return None


def _merged(replies: Sequence[Reply]) -> Reply:
    """Paused is one of which any replica is: who waits there waits for that."""
    one = merged(replies, ("waiting", "running", "in_flight"))
    paused = any(reply.body.get("paused", False) for reply in replies)
    return msgspec.structs.replace(one, body={**one.body, "paused": paused})


FLUSH_CACHE = Row(
    name="flush-cache",
    message=FlushCache,
    reply=FlushReply,
    merge=_merged,
    who=Who.ADMIN,
    routes=("/flush_cache",),
    draw=_drawn,
    check=_check,
    proves="quiescent_flush",
)
