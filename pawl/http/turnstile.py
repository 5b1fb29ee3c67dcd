"""What new requests and whole replies cost, a few pieces each time round the event loop.

After them the loop looks at its sockets and at what other threads have told it: a token of a stream waits for a few
pieces of other people's work, however many have come at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send

PIECES = 8
"""Each time round. A piece takes a tenth to a third of a millisecond; with one at a time, requests that come together
would be passed on in smaller groups, and share fewer steps."""


class Turnstile:
    """Of one event loop. First come, first served."""

    def __init__(self) -> None:
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
        self._left -= 1
        if not self._counting:
            self._counting = True
            loop.call_soon(self._next)
        return self._round

    def _next(self) -> None:
        self._round += 1
        self._left = PIECES
        while self._waiting and self._left:
            first = self._waiting.popleft()
            if not first.done():  # else whoever waited was cancelled
                self._left -= 1
                first.set_result(self._round)
        self._counting = self._left < PIECES
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


async def turn_of(scope: Mapping[str, Any]) -> None:
    """Wait until a request whose work goes on may do a piece of it: at once where it has waited for nothing since."""
    await scope["turnstile"].turn(scope["turn"])
