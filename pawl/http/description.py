"""What a visitor finds: `/`, `/docs`, `/version`, `/ping`, and `/openapi.json`, which is made from the routes and the
types of their bodies."""

from __future__ import annotations

import html
import inspect
from collections.abc import Awaitable, Callable, Sequence
from functools import cached_property, wraps
from typing import Any, Concatenate, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from pawl.http.context import ServerContext
from pawl.http.errors import json_response

Routes = TypeVar("Routes", bound="HasContext")
Body = TypeVar("Body", bound=msgspec.Struct)
Handler = Callable[[Routes, Request], Awaitable[Response]]
SCHEMA = "#/components/schemas/{name}"


class HasContext:
    """A group of routes."""

    def __init__(self, context: ServerContext) -> None:
        self.context = context

    def routes(self) -> list[Route]:
        """Each with its handler."""
        raise NotImplementedError


def takes(
    kind: type[Body],
) -> Callable[[Callable[Concatenate[Routes, Request, Body, ...], Awaitable[Response]]], Handler[Routes]]:
    """A handler of requests whose body is a `kind`: it is read before the handler is called, and named in the
    description."""

    def reading(handler: Callable[Concatenate[Routes, Request, Body, ...], Awaitable[Response]]) -> Handler[Routes]:
        @wraps(handler)
        async def handle(self: Routes, request: Request) -> Response:
            return await handler(self, request, await self.context.read(request, kind))

        handle.body = kind  # type: ignore[attr-defined]
        return handle

    return reading


class DescriptionRoutes(HasContext):
    """Pages about the server itself."""

    def __init__(self, context: ServerContext, described: Sequence[Route]) -> None:
        super().__init__(context)
        self._described = [*described, *self.routes()]

    @cached_property
    def _description(self) -> bytes:
        return msgspec.json.encode(describe(self._described, self.context.info.version))

    def routes(self) -> list[Route]:
        get = ["GET"]
        return [
            Route("/", self.root, methods=get),
            Route("/docs", self.docs, methods=get),
            Route("/openapi.json", self.openapi, methods=get),
            Route("/version", self.version, methods=get),
            Route("/ping", self.ping, methods=["GET", "POST"]),
        ]

    async def root(self, request: Request) -> Response:
        """What this is, and where to look."""
        info = self.context.info
        links = {name: f"/{name}" for name in ("docs", "openapi.json", "v1/models", "health", "metrics")}
        return json_response({"server": "pawl", "version": info.version, "model": info.model_name, **links})

    async def version(self, request: Request) -> Response:
        """The server's version."""
        return json_response({"version": self.context.info.version})

    async def ping(self, request: Request) -> Response:
        """200 while the process answers, whatever the engine does."""
        return Response(status_code=200)

    async def openapi(self, request: Request) -> Response:
        """This description, for programs."""
        return Response(self._description, media_type="application/json")

    async def docs(self, request: Request) -> Response:
        """All routes, for people."""
        rows = "".join(
            f"<tr><td>{html.escape(' '.join(methods_of(route)))}<td><code>{html.escape(route.path)}</code>"
            f"<td>{html.escape(summary_of(route))}"
            for route in self._described
        )
        title = f"Pawl {html.escape(self.context.info.version)}: {html.escape(self.context.info.model_name)}"
        return HTMLResponse(
            f"<!doctype html><meta charset=utf-8><title>{title}</title><style>body{{font:16px sans-serif;margin:2em}}"
            f"td{{padding:.2em 1em .2em 0}}</style><h1>{title}</h1><p>Fields and their bounds: "
            f"<a href=/openapi.json>openapi.json</a><table>{rows}</table>"
        )


def methods_of(route: Route) -> list[str]:
    return sorted((route.methods or set()) - {"HEAD"})


def summary_of(route: Route) -> str:
    """The first line of a handler's docstring."""
    return (inspect.getdoc(route.endpoint) or "").partition("\n")[0]


def _leave_out_tag(kind: type[msgspec.Struct], schema: dict[str, Any]) -> None:
    """What tells our own messages apart is nothing that a client sends."""
    config = kind.__struct_config__
    if config.tag is not None:
        schema["properties"].pop(config.tag_field, None)
        schema["required"] = [name for name in schema["required"] if name != config.tag_field]


def describe(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The description in OpenAPI 3.1."""
    kinds = {route.endpoint.body for route in routes if hasattr(route.endpoint, "body")}
    _, components = msgspec.json.schema_components(sorted(kinds, key=lambda kind: kind.__name__), ref_template=SCHEMA)
    for kind in kinds:
        _leave_out_tag(kind, components[kind.__name__])
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        operation: dict[str, Any] = {
            "summary": summary_of(route),
            "responses": {"200": {"description": "done"}, "default": {"description": "an object with `error`"}},
        }
        kind = getattr(route.endpoint, "body", None)
        path = route.path.replace(":path}", "}")
        if "{name}" in path:
            operation["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        for method in methods_of(route):
            with_body = kind is not None and method != "GET"
            schema = {"schema": {"$ref": SCHEMA.format(name=kind.__name__)}} if kind is not None else {}
            body = {"requestBody": {"required": True, "content": {"application/json": schema}}} if with_body else {}
            paths.setdefault(path, {})[method.lower()] = operation | body
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pawl", "version": version},
        "paths": paths,
        "components": {"schemas": components},
    }
