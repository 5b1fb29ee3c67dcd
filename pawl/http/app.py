"""The ASGI application: routes, errors, keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pawl.actors.control import ROWS
from pawl.actors.gateway import Gateway
from pawl.actors.text.invalid import InvalidRequest, clipped
from pawl.http.auth import KeyCheck
from pawl.http.body import UNFINISHED_BODIES, BodyBudget
from pawl.http.context import Homes, ServerContext, Statistics
from pawl.http.control import ControlRoutes
from pawl.http.description import DescriptionRoutes, HasContext
from pawl.http.embeddings import EmbeddingRoutes
from pawl.http.errors import Problem, from_invalid
from pawl.http.generation import NAMES, GenerationRoutes
from pawl.http.guard import Guard
from pawl.http.info import ServerInfo, Tokenization
from pawl.http.invocations import InvocationRoutes
from pawl.http.pair import PairRoutes
from pawl.http.scoring import ScoringRoutes
from pawl.http.tokens import TokenRoutes
from pawl.http.turnstile import InTurns

DEFAULT_MAX_BODY_BYTES = 32 << 20


def create_app(
    gateway: Gateway,
    info: ServerInfo,
    tokenization: Tokenization,
    *,
    api_key: str | None = None,
    admin_api_key: str | None = None,
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
    probe_timeout_s: float = 20.0,
    statistics: Statistics = dict,
    homes: Homes = list,
    hosts: Collection[str] | None = None,
    origins: Collection[str] = (),
    cut: Mapping[str, int] = MappingProxyType({}),
) -> Starlette:
    """The application that serves one engine. It must run on the event loop that drives `gateway`.

    `hosts` and `origins`: who may ask from a browser (see `Guard`). `cut`: counts of cut connections, for the metrics.
    """
    context = ServerContext(
        gateway,
        info,
        tokenization,
        statistics,
        max_body_bytes,
        probe_timeout_s,
        BodyBudget(UNFINISHED_BODIES * max_body_bytes),
        homes,
        cut,
    )
    groups: tuple[type[HasContext], ...] = (
        *(GenerationRoutes, EmbeddingRoutes, ScoringRoutes, TokenRoutes, ControlRoutes, PairRoutes),
    )
    routes = [route for group in groups for route in group(context).routes()]
    routes += InvocationRoutes(context, routes).routes()
    return Starlette(
        routes=[*routes, *DescriptionRoutes(context, routes).routes()],
        middleware=[
            Middleware(InTurns),
            *guards(hosts, origins),
            Middleware(KeyCheck, api_key=api_key, admin_api_key=admin_api_key),
        ],
        exception_handlers={
            Problem: _problem,
            InvalidRequest: _invalid,
            HTTPException: _http_error,
            ClientDisconnect: _disconnected,
            Exception: _internal_error,
        },
    )


def guards(hosts: Collection[str] | None, origins: Collection[str]) -> list[Middleware]:
    """Who may ask at all, from the first moment on; the outermost first."""
    guard = Middleware(
        Guard, hosts=hosts, origins=origins, raw=[path for row in ROWS if row.raw for path in row.routes]
    )
    if not origins:
        return [guard]
    # Tells browsers that pages of these origins may ask and read. Ahead of all: the question comes without a key.
    cors = Middleware(CORSMiddleware, allow_origins=sorted(origins), allow_methods=["GET", "POST"], allow_headers=["*"])
    return [cors, guard]


def _respond(request: Request, problem: Problem) -> Response:
    """In the route's own words, which a renderer may have used before."""
    named = problem.renamed(NAMES.get(request.url.path, {}))
    return named.response(request.url.path)


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return _respond(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, InvalidRequest)
    return _respond(request, from_invalid(error))


async def _http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    headers: Mapping[str, Any] = error.headers or {}
    if error.status_code == 404:
        return _respond(request, Problem(404, f"there is nothing at {clipped(request.url.path)}", code="not_found"))
    if error.status_code == 405:
        allowed = headers.get("Allow", "")
        text = f"{clipped(request.method)} is not possible at {clipped(request.url.path)}; it takes {allowed}"
        return _respond(request, Problem(405, text, code="method_not_allowed", headers=headers))
    return _respond(request, Problem(error.status_code, error.detail, headers=headers))


async def _disconnected(request: Request, error: Exception) -> Response:
    """The client went away while it still sent its body: nobody reads this."""
    return Response(status_code=499)


async def _internal_error(request: Request, error: Exception) -> Response:
    return _respond(request, Problem(500, "the server failed; its log says more", code="internal"))
