"""The handlers of the routes that look at the server and steer it."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Submit
from pawl.http.context import ServerContext
from pawl.http.errors import Problem, from_delta, json_response
from pawl.http.metrics import CONTENT_TYPE, exposition
from pawl.http.openai import check_model
from pawl.http.schemas import AbortBody, DetokenizeBody, Strings, TokenizeBody
from pawl.http.streams import RequestGroup, ask
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause

ABORT_PATIENCE_S = 5.0
"""How long `/abort_request` waits to see the requests end."""
MAX_FLUSH_S = 3600.0
THREAD_CHARACTERS = 20_000
"""Text longer than this is tokenized beside the event loop, not in it."""


class ControlRoutes:
    """Health, facts, tokenization, abort, flush, metrics."""

    def __init__(self, site: ServerContext) -> None:
        self._site = site

    def routes(self) -> list[Route]:
        get, post, either = ["GET"], ["POST"], ["GET", "POST"]
        return [
            Route("/health", self.health, methods=get),
            Route("/ready", self.ready, methods=get),
            Route("/health_generate", self.health_generate, methods=get),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{name:path}", self.model, methods=get),
            Route("/model_info", self.model_info, methods=get),
            Route("/get_model_info", self.model_info, methods=get),
            Route("/server_info", self.server_info, methods=get),
            Route("/get_server_info", self.server_info, methods=get),
            Route("/v1/loads", self.loads, methods=get),
            Route("/tokenize", self.tokenize, methods=post),
            Route("/detokenize", self.detokenize, methods=post),
            Route("/abort_request", self.abort, methods=post),
            Route("/flush_cache", self.flush, methods=either),
            Route("/metrics", self.metrics, methods=get),
        ]

    # ---- health ----

    def _ailment(self) -> str | None:
        """Why nothing can be served, if so."""
        gateway = self._site.gateway
        if gateway.lost is not None:
            return gateway.lost
        if gateway.stalled_s > 0:
            return f"the engine has not moved for {gateway.stalled_s:.1f} s"
        return None

    async def health(self, request: Request) -> Response:
        """200 while the engine's loop turns."""
        ailment = self._ailment()
        return json_response({"status": ailment or "ok"}, 503 if ailment else 200)

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

    async def _state(self, detail: bool = False) -> Reply:
        gateway = self._site.gateway
        return await ask(lambda answer: gateway.get_state(answer, detail=detail))

    async def server_info(self, request: Request) -> Response:
        """Settings, and what the scheduler says of itself; `?detail=1` lists the live requests too."""
        info, gateway = self._site.info, self._site.gateway
        reply = await self._state(request.query_params.get("detail", "0") not in ("0", "", "false"))
        body = {
            **info.settings,
            "version": info.version,
            "model_path": info.model_path,
            "served_model_name": info.model_name,
            "context_length": info.context_length,
            "status": self._ailment() or ("draining" if gateway.draining else "ready"),
            "open_requests": gateway.num_live,
            "actors": self._site.statistics(),
            # Clients of SGLang look for the schedulers' own words here, one entry for each.
            "internal_states": [reply.body if reply.ok else {"error": reply.message}],
        }
        return json_response(body)

    async def loads(self, request: Request) -> Response:
        """How busy each scheduler is."""
        reply = await self._state()
        if not reply.ok:
            raise Problem(503, reply.message)
        pages = reply.body.get("pages", {})
        used = sum(pages.get(owner, 0) for owner in ("owned", "deferred"))
        load = {
            "dp_rank": 0,
            "num_running_reqs": reply.body.get("running", 0),
            "num_waiting_reqs": reply.body.get("waiting", 0),
            "num_total_reqs": reply.body.get("running", 0) + reply.body.get("waiting", 0),
            "num_used_tokens": used * pages.get("page_size", 1),
            "max_total_num_tokens": pages.get("total", 0) * pages.get("page_size", 1),
        }
        return json_response({"version": self._site.info.version, "dp_rank_count": 1, "loads": [load]})

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

    async def abort(self, request: Request) -> Response:
        """End requests by their exact names, or all; waits a little to tell which have ended."""
        body = await self._site.read(request, AbortBody)
        gateway = self._site.gateway
        if body.abort_all:
            if not request.scope.get("admin", True):
                raise Problem(403, "abort_all needs the admin key", param="abort_all", code="admin_key_needed")
            found = {"": gateway.live()}
            names: list[str] = []
        else:
            names = [body.rid] if isinstance(body.rid, str) else list(body.rid or ())
            if not names:
                raise Problem(400, "send rid, or abort_all", param="rid")
            found = {name: gateway.find(name) for name in names}
        aborted = gateway.abort([n for numbers in found.values() for n in numbers], message=body.abort_message or "")
        pending = await self._await_ends(aborted)
        if body.abort_all:
            return json_response(
                {"success": True, "num_ended": len(aborted) - len(pending), "num_pending": len(pending)}
            )
        return json_response(
            {
                "success": all(found.values()),
                "ended": [name for name in names if found[name] and pending.isdisjoint(found[name])],
                "pending": [name for name in names if not pending.isdisjoint(found[name])],
                "unknown": [name for name in names if not found[name]],
            }
        )

    async def _await_ends(self, requests: tuple[int, ...]) -> set[int]:
        """Wait until these have ended; returns those that have not within the time."""
        pending = set(requests)
        over = asyncio.Event()

        def ended(number: int) -> None:
            pending.discard(number)
            if not pending:
                over.set()

        for number in requests:
            self._site.gateway.when_ended(number, lambda number=number: ended(number))  # type: ignore[misc]
        if pending:
            try:
                async with asyncio.timeout(ABORT_PATIENCE_S):
                    await over.wait()
            except TimeoutError:
                pass
        return set(pending)

    async def flush(self, request: Request) -> Response:
        """Empty the prefix cache; `?timeout=` seconds to wait for rest."""
        given = request.query_params.get("timeout", "0")
        try:
            timeout_s = float(given)
        except ValueError:
            timeout_s = -1.0
        if not 0 <= timeout_s <= MAX_FLUSH_S:
            text = f"timeout must be a number of seconds from 0 to {MAX_FLUSH_S:g}, not {given!r}"
            raise Problem(400, text, param="timeout")
        gateway = self._site.gateway
        reply = await ask(lambda answer: gateway.flush_cache(timeout_s, answer))
        body = {"success": reply.ok, "message": reply.message, **reply.body}
        return json_response(
            body if reply.ok else body | {"error": {"message": reply.message}}, 200 if reply.ok else 400
        )

    async def metrics(self, request: Request) -> Response:
        reply = await self._state()
        text = exposition(self._site.gateway, reply.body if reply.ok else None, self._site.statistics())
        return Response(text, media_type=CONTENT_TYPE)
