"""API keys. A pure ASGI layer: it looks at one header and costs nothing where no key is set."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from pawl.actors.control import ROWS
from pawl.actors.control_row import Who
from pawl.http.errors import Problem

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics", "/ping"})
"""For probes and scrapers, which carry no keys."""

ADMIN_PATHS = frozenset(path for row in ROWS if row.who is Who.ADMIN for path in row.routes)
"""Control routes: they act on other people's requests."""


class KeyCheck:
    """Lets a request through when its bearer token is the key that its path needs.

    The admin key opens everything. Where only an admin key is set, ordinary routes are open; where only an API key is
    set, it opens the control routes too. `scope["admin"]` tells handlers whether the caller may control the server.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, admin_api_key: str | None) -> None:
        self._app = app
        self._api_key = api_key
        self._admin_key = admin_api_key or api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._admin_key is not None:
            token = _bearer(scope)
            admin = _same(token, self._admin_key)
            path = scope["path"]
            allowed = admin or path in OPEN_PATHS or self._api_key is None or _same(token, self._api_key)
            if path in ADMIN_PATHS:
                allowed = admin
            if not allowed:
                await _refusal(path, token).response(path)(scope, receive, send)
                return
            scope["admin"] = admin
        await self._app(scope, receive, send)


def _bearer(scope: Scope) -> bytes:
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, token = bytes(value).partition(b" ")
            return token.strip() if kind.lower() == b"bearer" else b""
    return b""


def _same(token: bytes, key: str) -> bool:
    # Takes the same time wherever the two differ.
    return hmac.compare_digest(token, key.encode())


def _refusal(path: str, token: bytes) -> Problem:
    what = "the admin key" if path in ADMIN_PATHS else "an API key"
    text = f"wrong key: this route needs {what}" if token else f"no key: send {what} as `Authorization: Bearer KEY`"
    return Problem(401, text, code="invalid_api_key", headers={"www-authenticate": "Bearer"})
