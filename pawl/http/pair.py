"""A pair of replicas, to routers that know of a prefill server and a decode server, as SGLang's does.

Such a router sends each request to both, with fields by which they find each other. Replicas of ours find each other
by themselves (`pawl.loops.remote_prefill`), so one server is both: with `--disaggregate` there is under `/prefill` what
the router looks for at a prefill server. Requests that come there need nothing done; the decode side has them too.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pawl.http.context import ServerContext
from pawl.http.control import ControlRoutes
from pawl.http.description import HasContext, takes
from pawl.http.errors import Problem, json_response
from pawl.http.info import ServerInfo
from pawl.http.pair_fields import Paired, PairedBody
from pawl.http.schemas import OpenAiBody

PREFIX = "/prefill"
ASKED = (
    "/health",
    "/health_generate",
    "/v1/models",
    "/model_info",
    "/get_model_info",
    "/server_info",
    "/get_server_info",
)
"""What a router looks at before it sends anything."""
GENERATING = ("/generate", "/v1/completions", "/v1/chat/completions")


def is_pair(info: ServerInfo) -> bool:
    """Whether some replicas of this server prefill for others."""
    return info.settings.get("disaggregate") is not None


def check_paired(body: Paired | OpenAiBody, context: ServerContext) -> None:
    """Raises Problem where a request was computed elsewhere in part, and this server cannot get that."""
    for name in Paired.__struct_fields__:
        if getattr(body, name) is not None and not is_pair(context.info):
            text = f"{name}: this server has no replicas that prefill; start it with --disaggregate"
            raise Problem(400, text, param=name)


class PairRoutes(HasContext):
    """What a router looks for at a prefill server."""

    def __init__(self, context: ServerContext) -> None:
        super().__init__(context)
        self._control = ControlRoutes(context)

    def routes(self) -> list[Route]:
        if not is_pair(self.context.info):
            return []
        asked = {f"{PREFIX}{path}" for path in ASKED}
        shown = [
            Route(f"{PREFIX}{route.path}", route.endpoint, methods=["GET"])
            for route in self._control.routes()
            if f"{PREFIX}{route.path}" in asked
        ]
        texts = [Route(f"{PREFIX}{path}", self.prefill, methods=["POST"]) for path in GENERATING]
        return [*shown, *texts]

    @takes(PairedBody)
    async def prefill(self, request: Request, body: PairedBody) -> Response:
        """Nothing, at once: the decode side has the request too, and has its prompt prefilled."""
        if body.bootstrap_room is None:
            text = "bootstrap_room: a request without one has no decode side; send it there, without /prefill"
            raise Problem(400, text, param="bootstrap_room")
        openai = request.url.path.startswith(f"{PREFIX}/v1/")
        if openai:
            return json_response({"object": "text_completion", "choices": []})
        rooms = body.bootstrap_room
        replies = [_empty() for _ in (rooms if isinstance(rooms, list) else [rooms])]
        return json_response(replies if isinstance(rooms, list) else replies[0])


def _empty() -> dict[str, Any]:
    return {"text": "", "output_ids": [], "meta_info": {"finish_reason": None, "completion_tokens": 0}}
