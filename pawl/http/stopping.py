"""What becomes of a reply that a server which stops waits for no longer.

uvicorn then cancels what makes it. Nobody else does, so a cancelled reply is no failure: a client that still waits for
its first byte (its body never came, or its order takes long) is told that the server stops, and one that has not read
what it has of a reply is cut off.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from pawl.http.errors import MESSAGE_OF_CAUSE, STATUS_OF_CAUSE, Problem
from pawl.lifecycle.states import Cause

STOPS = Problem(STATUS_OF_CAUSE[Cause.DRAINED], MESSAGE_OF_CAUSE[Cause.DRAINED], code=Cause.DRAINED)


def until_the_stop(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """The application for one request, which may be cancelled: then `cycle`, its reply, is ended."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except asyncio.CancelledError:
            if cycle.response_started or cycle.flow.write_paused:
                cycle.disconnected = True
                cycle.transport.abort()
            else:
                await STOPS.response(scope["path"])(scope, receive, send)

    return answer
