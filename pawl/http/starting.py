"""What a server says while its model is loading: the port is open from the first moment, and nobody waits at it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pawl.http.errors import Problem, json_response

RETRY_AFTER_S = 2
PROBES = ("/health", "/ready")


class Front:
    """The application that uvicorn runs. It answers 503 until there is an engine; from then on `application` does."""

    def __init__(self, guards: Sequence[Middleware] = ()) -> None:
        """`guards`: who may ask at all, the outermost first; `application` has its own."""
        self.application: ASGIApp | None = None
        self.loaded = 0.0
        """Share of loading that is done, 0 to 1. Written by the thread that loads."""
        self._loading: ASGIApp = self._not_yet
        for guard in reversed(guards):
            self._loading = guard.cls(self._loading, *guard.args, **guard.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.application or self._loading)(scope, receive, send)

    async def _not_yet(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._answer(Request(scope))(scope, receive, send)

    def _answer(self, request: Request) -> Response:
        status = f"loading {self.loaded:.0%}".replace("%", " %")
        headers = {"retry-after": str(RETRY_AFTER_S)}
        if request.url.path in PROBES:
            return json_response({"status": status}, 503, headers)
        problem = Problem(503, f"the model is not there yet: {status}", code="loading", headers=headers)
        return problem.response(request.url.path)
