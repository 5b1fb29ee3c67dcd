"""The handlers of the routes that look at the server and steer it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pawl.actors.control import ROWS
from pawl.actors.control.state import STATE, GetState
from pawl.actors.control_row import Row
from pawl.actors.messages.generate import Submit
from pawl.http.body import decode_fields, read_body
from pawl.http.context import ServerContext
from pawl.http.errors import Problem, from_delta, json_response
from pawl.http.metrics import CONTENT_TYPE, exposition
from pawl.http.openai import check_model
from pawl.http.schemas import DetokenizeBody, Strings, TokenizeBody
from pawl.http.streams import RequestGroup, ask
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause

THREAD_CHARACTERS = 20_000
"""Text longer than this is tokenized beside the event loop, not in it."""


class ControlRoutes:
    """Health, facts, tokenization, metrics, and every control message."""

    def __init__(self, site: ServerContext) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        get, post = ["GET"], ["POST"]
        return [
            Route("/health", self.health, methods=get),
            Route("/ready", self.ready, methods=get),
            Route("/health_generate", self.health_generate, methods=get),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{name:path}", self.model, methods=get),
            Route("/model_info", self.model_info, methods=get),
            Route("/get_model_info", self.model_info, methods=get),
            Route("/tokenize", self.tokenize, methods=post),
            Route("/detokenize", self.detokenize, methods=post),
            Route("/metrics", self.metrics, methods=get),
            *(Route(path, self._steer(row), methods=list(row.methods)) for row in ROWS for path in row.routes),
        ]

    # ---- health ----

    def _ailment(self) -> str | None:
        """Why nothing can be served, if so."""
        gateway = self._site.gateway
        if gateway.lost is not None:
            return gateway.lost
        if gateway.stalled_s > 0:
            return f"the engine has not moved for {gateway.stalled_s:.1f} s"
        return gateway.trace_losses.refusal or None

    async def health(self, request: Request) -> Response:
        """200 while the engine's loop turns, and says what of the trace is lost."""
        ailment = self._ailment()
        body = {"status": ailment or "ok", "trace": self._site.gateway.trace_losses.status}
        return json_response(body, 503 if ailment else 200)

    async def ready(self, request: Request) -> Response:
        """200 while new requests are taken."""
        ailment = self._ailment() or ("the server is shutting down" if self._site.gateway.draining else None)
        return json_response({"status": ailment or "ready"}, 503 if ailment else 200)

    async def health_generate(self, request: Request) -> Response:
        """Really generate one token."""
        submit = Submit(request=0, rid="", text="1", sampling=SamplingParameters(max_new_tokens=1, temperature=0.0))
        bundle = RequestGroup(self._site.gateway, [submit], whole=True)
        arrivals = await bundle.arrivals(self._site.probe_timeout_s)
        if not arrivals:
            bundle.abort(Cause.TIMEOUT, "health probe")
            raise Problem(503, f"no token within {self._site.probe_timeout_s:g} s", code="timeout")
        problem = from_delta(arrivals[0][1])
        if problem is not None:
            raise problem
        return json_response({"status": "ok"})

    # ---- facts ----

    def _card(self) -> dict[str, Any]:
        info = self._site.info
        return {
            "id": info.model_name,
            "object": "model",
            "created": info.created,
            "owned_by": "pawl",
            "root": info.model_path,
            "parent": None,
            "max_model_len": info.context_length,
        }

    async def models(self, request: Request) -> Response:
        return json_response({"object": "list", "data": [self._card()]})

    async def model(self, request: Request) -> Response:
        check_model(self._site.info, request.path_params["name"])
        return json_response(self._card())

    async def model_info(self, request: Request) -> Response:
        info = self._site.info
        return json_response(
            {
                "model_path": info.model_path,
                "tokenizer_path": info.model_path,
                "served_model_name": info.model_name,
                "is_generation": True,
                "weight_version": info.weight_version,
                "context_length": info.context_length,
                "max_context_length": info.context_length,
                "vocab_size": info.vocabulary_size,
            }
        )

    def _facts(self) -> dict[str, Any]:
        """What the server knows of itself."""
        info, gateway = self._site.info, self._site.gateway
        return {
            **info.settings,
            "version": info.version,
            "model_path": info.model_path,
            "served_model_name": info.model_name,
            "context_length": info.context_length,
            "status": self._ailment() or ("draining" if gateway.draining else "ready"),
            "open_requests": gateway.num_live,
            "actors": self._site.statistics(),
        }

    # ---- text ----

    async def tokenize(self, request: Request) -> Response:
        body = await self._site.read(request, TokenizeBody)
        check_model(self._site.info, body.model)
        if (body.prompt is None) == (body.text is None):
            raise Problem(400, "send exactly one of prompt and text", param="prompt")
        text: Strings = body.prompt if body.prompt is not None else body.text
        special = body.add_special_tokens is not False
        tokens: list[Any]
        if isinstance(text, str):
            tokens = await self._encode(text, special)
            count: Any = len(tokens)
        else:
            tokens = [await self._encode(part, special) for part in text or ()]
            count = [len(part) for part in tokens]
        return json_response({"tokens": tokens, "count": count, "max_model_len": self._site.info.context_length})

    async def _encode(self, text: str, special: bool) -> list[int]:
        encode = self._site.tokenization.encode
        ids = await asyncio.to_thread(encode, text, special) if len(text) > THREAD_CHARACTERS else encode(text, special)
        return [int(token) for token in ids]

    async def detokenize(self, request: Request) -> Response:
        body = await self._site.read(request, DetokenizeBody)
        check_model(self._site.info, body.model)
        skip = body.skip_special_tokens is not False
        flat = [token for token in body.tokens if isinstance(token, int)]
        lists = [tokens for tokens in body.tokens if not isinstance(tokens, int)]
        if flat and lists:
            raise Problem(400, "tokens must not mix token ids and lists", param="tokens")
        for token in (*flat, *(token for tokens in lists for token in tokens)):
            if not 0 <= token < self._site.info.vocabulary_size:
                text = f"token {token} is outside the vocabulary of {self._site.info.vocabulary_size}"
                raise Problem(400, text, param="tokens")
        decode = self._site.tokenization.decode
        decoded = [decode(tokens, skip) for tokens in lists] if lists else decode(flat, skip)
        return json_response({"text": decoded, "prompt": decoded})

    # ---- steering ----

    def _steer(self, row: Row) -> Callable[[Request], Awaitable[Response]]:
        """The handler of one control message: its fields come in the query or as a JSON body."""

        async def handle(request: Request) -> Response:
            data = await read_body(request, self._site.max_body_bytes)
            body = decode_fields(data, dict(request.query_params), row.taken)
            if row.admin_when is not None and row.admin_when(body) and not request.scope.get("admin", True):
                raise Problem(403, f"{row.name} with these fields needs the admin key", code="admin_key_needed")
            reply = await ask(lambda answer: row.put(self._site.gateway, body, answer))
            status, shown = row.show(reply, self._facts())
            return json_response(shown, status)

        return handle

    async def metrics(self, request: Request) -> Response:
        reply = await ask(lambda answer: STATE.put(self._site.gateway, GetState(), answer))
        text = exposition(self._site.gateway, reply.body if reply.ok else None, self._site.statistics())
        return Response(text, media_type=CONTENT_TYPE)
