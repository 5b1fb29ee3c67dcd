"""Who may ask at all, before any route is looked at: a page in a browser may not, unless it was invited.

A server on the loopback address is within reach of every web page that its user opens. A page can send a POST without
asking first as long as it looks like a form, and can give its own name the address 127.0.0.1 (DNS rebinding). So the
name in `Host`, and in a request line that has one, must be one of ours, an `Origin` must be ours or invited, and a body
must be called JSON (or bytes, where a route takes them), which a page may send to another origin only where CORS allows
it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import IPv6Address

from starlette.types import ASGIApp, Receive, Scope, Send

from pawl.http.errors import Problem

RAW = "application/octet-stream"
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
SINGLE = frozenset({b"host", b"origin", b"authorization", b"content-type", b"content-encoding"})
"""Headers that are decided by: of one that comes twice, others may look at the other."""
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing, so a foreign page that sends one gains nothing: its browser keeps the reply from it."""
_HOST = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\s\[\]@:,/\\?#]+))(?::\d{0,5})?")


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    return host in LOOPBACK or host.startswith("127.")


class Guard:
    """A pure ASGI layer around the application.

    `hosts`: names that `Host` may have, without ports; None takes any. `origins`: of pages that may ask, as CORS has
    them; "*" is all. `raw`: paths of routes that take bytes.
    """

    def __init__(
        self, app: ASGIApp, hosts: Collection[str] | None, origins: Collection[str], raw: Collection[str] = ()
    ) -> None:
        self._app = app
        self._hosts = None if hosts is None else {_name(f"[{host}]" if ":" in host else host) for host in hosts}
        self._origins = frozenset(origins)
        self._raw = frozenset(raw)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            problem = self._problem(scope)
            if problem is not None:
                await problem.response(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> Problem | None:
        headers = {bytes(name): bytes(value).decode("latin-1") for name, value in scope["headers"]}
        if len(headers) < len(scope["headers"]):
            names = [bytes(name) for name, _ in scope["headers"]]
            for name in sorted(SINGLE & headers.keys()):
                if names.count(name) > 1:
                    return Problem(400, f"the header {name.decode()} came more than once")
        host = headers.get(b"host", "")
        for named in (host, scope.get("authority", host)):
            if self._hosts is not None and _name(named) not in self._hosts:
                text = f"this server does not answer to {named[:100]!r}; allow it with --allowed-hosts"
                return Problem(403, text, code="host_not_allowed")
        framing = headers.get(b"transfer-encoding", "chunked").strip().lower()
        if framing != "chunked":
            # Whoever forwarded it may have read another body than we would.
            text = f"transfer-encoding {framing[:50]!r} is not taken: send the body as it is, or in chunks"
            return Problem(501, text, headers={"connection": "close"})
        if scope["method"] in SAFE_METHODS:
            return None
        return self._foreign(headers, host) or _unreadable(headers, scope["path"] in self._raw)

    def _foreign(self, headers: dict[bytes, str], host: str) -> Problem | None:
        """Why a page of another origin may not ask, if it is one."""
        origin = headers.get(b"origin")
        if origin is None or "*" in self._origins or origin in self._origins or origin.partition("://")[2] == host:
            return None
        text = f"pages of {origin[:100]!r} may not ask this server; allow them with --cors-origins"
        return Problem(403, text, code="origin_not_allowed")


def _name(host: str) -> str:
    """`Host` without its port and the dot of an absolute name, in lower case; empty for what is no host."""
    found = _HOST.fullmatch(host)
    if found is None:
        return ""
    if found["v6"] is None:
        return found["name"].lower().removesuffix(".")
    try:
        return str(IPv6Address(found["v6"]))
    except ValueError:
        return ""


def _unreadable(headers: dict[bytes, str], raw: bool) -> Problem | None:
    """Why the body, if there is one, is not taken."""
    if headers.get(b"content-length", "0") == "0" and b"transfer-encoding" not in headers:
        return None
    coding = headers.get(b"content-encoding", "identity").lower()
    if coding != "identity":
        return Problem(415, f"content-encoding {coding[:50]!r} is not taken: send the body as it is")
    kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or kind.endswith("+json") or (raw and kind == RAW):
        return None
    said = f"content-type {kind[:50]!r}" if kind else "a body without a content-type"
    return Problem(415, f"{said} is not taken: send `content-type: application/json`")
