"""What a server says while its model is loading: the port is open from the first moment, and nobody waits at it."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pawl.http.errors import Problem, json_response

RETRY_AFTER_S = 2
PROBES = ("/health", "/ready")


class Front:
    """The application that uvicorn runs. It answers 503 until there is an engine; from then on `application` does."""

    def __init__(self) -> None:
        self.application: ASGIApp | None = None
        self.loaded = 0.0
        """Share of loading that is done, 0 to 1. Written by the thread that loads."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.application or self._not_yet(Request(scope))
        await answer(scope, receive, send)

    def _not_yet(self, request: Request) -> Response:
        status = f"loading {self.loaded:.0%}".replace("%", " %")
        headers = {"retry-after": str(RETRY_AFTER_S)}
        if request.url.path in PROBES:
            return json_response({"status": status}, 503, headers)
        problem = Problem(503, f"the model is not there yet: {status}", code="loading", headers=headers)
        return problem.response(request.url.path)
