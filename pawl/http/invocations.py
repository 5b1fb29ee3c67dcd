"""`/invocations`: the one route that SageMaker calls. What a body holds says which route it is for."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message

from pawl.actors import fields
from pawl.http.body import read_body
from pawl.http.context import ServerContext
from pawl.http.description import HasContext
from pawl.http.errors import Problem

ROUTES = {
    "messages": "/v1/chat/completions",
    "prompt": "/v1/completions",
    "task": "/pooling",
    "input": "/v1/embeddings",
    "items": "/v1/score",
    "text_1": "/score",
    "data_1": "/score",
    "documents": "/rerank",
}
"""Member -> the route whose body has it; of several the first counts."""


class InvocationRoutes(HasContext):
    """`/invocations`, as vLLM has it."""

    def __init__(self, context: ServerContext, routes: Sequence[Route]) -> None:
        """`routes`: those that it passes bodies on to, and others."""
        super().__init__(context)
        self._handlers = {route.path: route.endpoint for route in routes}

    def routes(self) -> list[Route]:
        return [Route("/invocations", self.invoke, methods=["POST"])]

    async def invoke(self, request: Request) -> Response:
        """A body of another route: of chats, completions, embeddings, pooling or scores, told by its members."""
        body = await read_body(request, self.context.max_body_bytes, self.context.bodies)
        members = fields.decode(body, dict[str, msgspec.Raw])
        path = next((path for name, path in ROUTES.items() if name in members), None)
        if path is None:
            raise Problem(400, f"the body has none of {', '.join(ROUTES)}, which say what it is for")

        async def again() -> Message:
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        request.scope["path"] = path  # errors, too, are in the words of that route
        response: Response = await self._handlers[path](Request(request.scope, again))
        return response
