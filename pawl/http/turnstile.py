"""What new requests, large bodies and whole replies cost, a few pieces each time round the event loop.

After them the loop looks at its sockets and at what other threads have told it: a token of a stream waits for a few
pieces of other people's work, however many have come at once. And while tokens are waited for, all large bodies
together have half of the loop's time: after each of their pieces they rest as long as it took.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

PIECES = 8
"""Each time round. A piece takes a tenth to a third of a millisecond; with one at a time, requests that come together
would be passed on in smaller groups, and share fewer steps."""
SHORTEST_REST_S = 0.001
"""What is less is rested later, together with more: timers know milliseconds."""


class Turnstile:
    """Of one event loop. First come, first served."""

    def __init__(self, worked: Callable[[], float] = time.thread_time) -> None:
        """`worked`: how long this thread has computed, in seconds; waiting for a processor is no work."""
        self.worked = worked
        self.num_streams = 0
        """Streams whose next token is waited for; they count themselves."""
        self._rested = 0.0
        """When all large pieces that were done have been rested for, as the event loop tells time."""
        self._waiting: deque[asyncio.Future[int]] = deque()
        self._round = 1
        self._left = PIECES
        """Of this time round."""
        self._counting = False
        """Whether the end of this time round is waited for."""

    async def turn(self, had: int = 0) -> int:
        """Wait for a turn, and return the number of its round. At once where this one has some left, or the caller is
        still in it: `had` is the number of its last."""
        if had == self._round and self._counting:
            return had
        loop = asyncio.get_running_loop()
        if not self._left:
            mine: asyncio.Future[int] = loop.create_future()
            self._waiting.append(mine)
            return await mine
        if not self._counting:
            loop.call_soon(self._next)
            self._counting = True
        self._left -= 1
        return self._round

    async def rest(self, took: float) -> None:
        """After a piece of a large body that took so many seconds: where tokens are waited for, wait until all such
        pieces have been rested for."""
        now = asyncio.get_running_loop().time()
        self._rested = max(self._rested, now) + took
        if self.num_streams and self._rested - now >= SHORTEST_REST_S:
            await asyncio.sleep(self._rested - now)

    def _next(self) -> None:
        try:
            self._round += 1
            self._left = PIECES
            while self._waiting and self._left:
                first = self._waiting[0]
                if not first.done():  # else whoever waited was cancelled
                    self._left -= 1
                    first.set_result(self._round)
                self._waiting.popleft()
        finally:  # whatever fails, who waits has a turn in the next round
            self._counting = self._left < PIECES or bool(self._waiting)
            if self._counting:
                asyncio.get_running_loop().call_soon(self._next)


class InTurns:
    """A pure ASGI layer around the application: each request begins in a turn."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turnstile = Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["turnstile"] = self._turnstile
        scope["turn"] = await self._turnstile.turn()
        await self._app(scope, receive, send)


async def turn_of(scope: MutableMapping[str, Any]) -> None:
    """Wait until a request whose work goes on may do a piece of it: at once where it has waited for nothing since."""
    scope["turn"] = await scope["turnstile"].turn(scope["turn"])
