"""What a running engine says about itself."""

from __future__ import annotations

import asyncio
import queue
from typing import Any

from pawl.actors.control.state import GetState
from pawl.actors.messages.control import Reply
from pawl.engine import Engine

PATIENCE_S = 180.0


def state_of(running: Engine) -> dict[str, Any]:
    """What the scheduler answers to a question for its state; `running` keeps an event loop of its own."""
    replies: queue.SimpleQueue[Reply] = queue.SimpleQueue()

    async def ask() -> None:
        running.gateway.ask(GetState(), replies.put, PATIENCE_S)

    assert running._own_loop is not None
    asyncio.run_coroutine_threadsafe(ask(), running._own_loop).result()
    reply = replies.get(timeout=PATIENCE_S)
    assert reply.ok, reply.message
    return reply.body
