"""The handlers of the routes that look at the server and steer it."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pawl.actors.control import ROWS
from pawl.actors.control.state import STATE, GetState
from pawl.actors.control_row import Row, parameters
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Submit
from pawl.actors.sampling import embedding_sampling
from pawl.actors.text.invalid import quoted
from pawl.http.adapters import split_model, why_no_name
from pawl.http.body import decode_fields, is_raw, read_body
from pawl.http.description import HasContext
from pawl.http.errors import Problem, from_delta, json_response, status_of
from pawl.http.metrics import CONTENT_TYPE, exposition
from pawl.http.streams import RequestGroup, ask
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause
from pawl.loops.adapter import Named


class ControlRoutes(HasContext):
    """Health, facts, metrics, and every control message."""

    def routes(self) -> list[Route]:
        get = ["GET"]
        return [
            Route("/health", self.health, methods=get),
            Route("/ready", self.ready, methods=get),
            Route("/health_generate", self.health_generate, methods=get),
            Route("/v1/models", self.models, methods=get),
            Route("/v1/models/{name:path}", self.model, methods=get),
            Route("/model_info", self.model_info, methods=get),
            Route("/get_model_info", self.model_info, methods=get),
            Route("/weight_version", self.weight_version, methods=get),
            Route("/get_weight_version", self.weight_version, methods=get),
            Route("/metrics", self.metrics, methods=get),
            *(Route(path, self._steer(row), methods=list(row.methods)) for row in ROWS for path in row.routes),
        ]

    # ---- health ----

    def _ailment(self) -> str | None:
        """Why nothing can be served, if so."""
        gateway = self.context.gateway
        if gateway.lost is not None:
            return gateway.lost
        if gateway.pace.seconds > 0:
            return f"the engine has not moved for {gateway.pace.seconds:.1f} s"
        return gateway.trace_losses.refusal or None

    def _standstill(self) -> str:
        """Why no step is planned, in a word; empty where steps are."""
        gateway = self.context.gateway
        return "paused" if gateway.paused else "released" if gateway.released else ""

    async def health(self, request: Request) -> Response:
        """200 while the engine's loop turns, also where it is paused or memory is released, which it says; 503 with
        what is wrong from the moment that an actor is gone, or when the loop has not moved for long. Says at once how
        old a step is, how long the scheduler is silent, for how long the event loop has stood still at the longest,
        what of the trace is lost, and why a lost replica is not started again."""
        ailment, gateway = self._ailment(), self.context.gateway
        body: dict[str, Any] = {"status": ailment or self._standstill() or "ok", "released": gateway.released}
        if gateway.lost is not None:
            body["cause"] = str(Cause.INTERNAL)
        body |= {
            "oldest_step_s": round(gateway.pace.oldest_step_s, 3),
            "silent_s": round(gateway.pace.silent_s, 3),
            "longest_freeze_s": round(gateway.longest_freeze_s, 3),
            "trace": gateway.trace_losses.status,
        }
        if gateway.replicas.not_replaced:
            body["not_replaced"] = list(gateway.replicas.not_replaced)
        return json_response(body, 503 if ailment else 200)

    async def ready(self, request: Request) -> Response:
        """200 while new requests are taken."""
        ailment = self._ailment() or ("the server is shutting down" if self.context.gateway.draining else None)
        return json_response({"status": ailment or "ready"}, 503 if ailment else 200)

    async def health_generate(self, request: Request) -> Response:
        """Really generate one token, or make one vector where the model does no more; while generation is paused
        or memory is released neither can be, and 200 says so."""
        if self._standstill() and self._ailment() is None:
            return json_response({"status": self._standstill()})
        limits = self.context.info.limits
        token = SamplingParameters(max_new_tokens=1, temperature=0.0)
        sampling = token if limits.abilities.generates else embedding_sampling(limits)
        submit = Submit(request=0, rid="", text="1", sampling=sampling)
        group = RequestGroup(self.context.gateway, [submit], whole=True)
        arrivals = await group.arrivals(self.context.probe_timeout_s)
        if not arrivals:
            group.abort(Cause.TIMEOUT, "health probe")
            raise Problem(503, f"no token within {self.context.probe_timeout_s:g} s", code="timeout")
        problem = from_delta(arrivals[0][1])
        if problem is not None:
            raise problem
        return json_response({"status": "ok"})

    # ---- facts ----

    def _card(self) -> dict[str, Any]:
        info = self.context.info
        return {
            "id": info.model_name,
            "object": "model",
            "created": info.created,
            "owned_by": "pawl",
            "root": info.model_name,
            "parent": None,
            "max_model_len": info.context_length,
        }

    def _adapter_card(self, adapter: Named) -> dict[str, Any]:
        return self._card() | {"id": adapter.name, "root": adapter.source, "parent": self.context.info.model_name}

    async def models(self, request: Request) -> Response:
        """The model that is served, and its adapters."""
        adapters = [self._adapter_card(adapter) for adapter in self.context.gateway.adapters.values()]
        return json_response({"object": "list", "data": [self._card(), *adapters]})

    async def model(self, request: Request) -> Response:
        """The model or the adapter of this name; 404 for another."""
        model = request.path_params["name"]
        name = split_model(self.context, model)
        adapter = self.context.gateway.adapters.get(name or "")
        if name != "" and adapter is None:
            raise Problem(404, f"the model {quoted(model)} does not exist here", param="model", code="model_not_found")
        return json_response(self._card() if adapter is None else self._adapter_card(adapter))

    async def model_info(self, request: Request) -> Response:
        """Facts about the model."""
        info = self.context.info
        return json_response(
            {
                "model_path": info.model_path,
                "tokenizer_path": self.context.started.model_path,
                "served_model_name": info.model_name,
                "is_generation": info.limits.abilities.generates,
                "weight_version": info.weight_version,
                "context_length": info.context_length,
                "max_context_length": info.context_length,
                "vocab_size": info.vocabulary_size,
            }
        )

    async def weight_version(self, request: Request) -> Response:
        """What replies call the weights that serve."""
        return json_response({"weight_version": self.context.info.weight_version})

    def _facts(self) -> dict[str, Any]:
        """What the server knows of itself."""
        info, gateway = self.context.info, self.context.gateway
        counts = gateway.replicas.counts
        return {
            **info.settings,
            "version": info.version,
            "model_path": info.model_path,
            "served_model_name": info.model_name,
            "context_length": info.context_length,
            "status": self._ailment() or ("draining" if gateway.draining else self._standstill() or "ready"),
            "open_requests": gateway.num_live,
            "replica_processes": self.context.homes(),
            "replicas": None if counts is None else msgspec.structs.asdict(counts),
            "startup_time": info.startup_s,
            "max_total_num_tokens": info.num_kv_tokens,
            "actors": self.context.statistics(),
        }

    # ---- steering ----

    def _steer(self, row: Row) -> Callable[[Request], Awaitable[Response]]:
        """The handler of one control message: its fields come in the query or as a JSON body."""

        async def handle(request: Request) -> Response:
            raw, query = row.raw is not None and is_raw(request), _fields(request.query_params, row)
            data = await read_body(request, self.context.max_body_bytes, self.context.bodies, json=not raw)
            body = decode_fields(b"" if raw else data, query, row.taken)
            if raw:
                body = msgspec.structs.replace(body, **{str(row.raw): bytes(data)})
            if row.admin_when is not None and row.admin_when(body) and not request.scope.get("admin", True):
                raise Problem(403, f"{row.name} with these fields needs the admin key", code="admin_key_needed")
            if why_not := why_no_name(self.context.info, body):
                reply = Reply(0, False, why_not)
            else:
                reply = await ask(lambda answer: row.put(self.context.gateway, body, answer))
            status, shown = row.show(reply, self._facts())
            return json_response(shown, status) if status < 400 else _undone(reply, status, shown, request.url.path)

        handle.__doc__ = inspect.getdoc(row.message)
        handle.body = row.taken  # type: ignore[attr-defined]
        return handle

    async def metrics(self, request: Request) -> Response:
        """Counters and gauges, as Prometheus reads them."""
        reply = await ask(lambda answer: STATE.put(self.context.gateway, GetState(), answer))
        context, state = self.context, reply.body if reply.ok else None
        text = exposition(context.gateway, context.info, state, context.statistics(), context.cut)
        return Response(text, media_type=CONTENT_TYPE)


def _undone(reply: Reply, status: int, shown: dict[str, Any], path: str) -> Response:
    """What was ordered was not done: the row's own words, with an error of the form that errors of this path have.
    Where nobody answered, or the server failed at it, the status says so, whatever the row says of refusals."""
    problem = Problem(status_of(reply, status), shown["error"]["message"])
    done = {"success": False} if "success" in shown else {}
    return json_response(shown | done | problem.body_at(path), problem.status, problem.headers)


def _fields(query: QueryParams, row: Row) -> dict[str, Any]:
    """What stands in the query, by name: lists as often as a name of theirs does."""
    lists = {each.name for each in parameters(row.taken) if each.kinds and each.kinds <= {list, tuple}}
    return {name: query.getlist(name) if name in lists else query[name] for name in query}
