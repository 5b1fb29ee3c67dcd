"""Connections with limits: what a client may keep us waiting for, and how many there may be.

uvicorn's HTTP protocol has no time-out but that of an idle connection, no bound on a head, and answers a broken request
before the good ones that came ahead of it. Once a second (`Connection.look`) each connection is asked whether it has
waited too long; a deadline is a number that the protocol's callbacks move, so a quiet connection costs nothing.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections import Counter
from collections.abc import MutableMapping
from typing import Any, cast

import httptools
import structlog
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from pawl.actors.runtime.actor import places_of
from pawl.http.auth import OPEN_PATHS
from pawl.http.errors import Problem
from pawl.http.stopping import until_the_stop

log = structlog.get_logger("pawl.http")

HEAD_S = 10.0
"""For a request's head, from its first byte (or from the connection's beginning) to its end."""
BODY_IDLE_S = 10.0
"""Between two pieces of a body."""
BODY_GRACE_S = 10.0
BODY_BYTES_PER_S = 16 << 10
"""After `BODY_GRACE_S` a body must have come at least this fast on average."""
SEND_S = 20.0
"""For a client that reads nothing of a reply whose buffers are full."""
MAX_HEAD = 64 << 10
"""Bytes of one head, and of what frames a body sent in chunks, beyond `FRAMING_RATIO` times the body itself."""
FRAMING_RATIO = 8
"""A chunk of one byte has five bytes around it."""
MAX_CONNECTIONS = 4096
RESERVE = 64
"""Descriptors for files, models and probes of health."""
VERSIONS = frozenset({"1.0", "1.1"})
"""Of HTTP, that are spoken here."""
UNKNOWN_VERSION = frozenset({"Invalid HTTP version", "Pause on PRI/Upgrade"})
"""What the parser says of some others."""
LOG_EVERY_S = 10.0
REASONS = ("send", "head", "body", "connections", "malformed", "head_size", "framing")
"""For which connections and requests are cut."""


class ConnectionLimits:
    """What all connections of a server share: how many there may be, and counts of those that were cut."""

    def __init__(self, most: int | None = None) -> None:
        self.most = _affordable() if most is None else most
        self.cut: Counter[str] = Counter()
        """Reason -> connections or requests that were refused or cut for it."""
        self._told: dict[str, float] = {}

    def count(self, reason: str, now: float) -> None:
        """Count, and log at most once in `LOG_EVERY_S` for each reason."""
        self.cut[reason] += 1
        if now - self._told.get(reason, -LOG_EVERY_S) >= LOG_EVERY_S:
            self._told[reason] = now
            log.warning("a connection was cut", reason=reason, total=self.cut[reason])


def _affordable() -> int:
    """As many connections as there may be descriptors, less a reserve. Raises the soft limit to the hard one first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + RESERVE
    if soft != resource.RLIM_INFINITY and soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
        except (OSError, ValueError):
            pass
    return MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else max(1, min(MAX_CONNECTIONS, soft - RESERVE))


def _head_too_large() -> Problem:
    return Problem(431, f"the head of a request has at most {MAX_HEAD} bytes", headers={"connection": "close"})


def _other_version() -> Problem:
    text = f"this server speaks HTTP/{' and HTTP/'.join(sorted(VERSIONS))}"
    return Problem(505, text, headers={"connection": "close"})


def _authority(url: bytes) -> str:
    """Whom a request is for that names more than a path. Raises HttpParserInvalidURLError."""
    parsed = httptools.parse_url(url)
    host = (parsed.host or b"").decode("latin-1")
    name = f"[{host}]" if ":" in host else host
    return name if parsed.userinfo is None else f"{parsed.userinfo.decode('latin-1')}@{name}"


def _framing(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The headers that say where the body ends, without those that say that there is none."""
    names = (b"content-length", b"transfer-encoding")
    kept = [(name, value) for name, value in headers if name in names and value.strip(b"0 ")]
    return b"".join(name + b": " + value + b"\r\n" for name, value in kept)


class _Body:
    """What a parser of a body alone tells a connection."""

    def __init__(self, connection: Connection) -> None:
        self.on_body = connection.on_body
        self.on_message_complete = connection.on_message_complete


class Connection(HttpToolsProtocol):
    """One client's connection. Reasons of a cut: head, body, send (too slow), head_size, framing, malformed,
    connections."""

    def __init__(self, limits: ConnectionLimits, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self._limits = limits
        self._served = self.app
        self._active: RequestResponseCycle | None = None
        """The request that is being answered, or was last; those that came behind it wait in `pipeline`."""
        self._deadline: tuple[float, str] | None = None
        self._send_deadline: float | None = None
        self._head_bytes = self._num_heads = 0
        """Of the head that is coming; heads that have come."""
        self._in_head = False
        self._body_began = 0.0
        self._body_bytes = self._framing_bytes = 0
        self._broken: Problem | None = None
        """A request could not be read: told once those before it have been answered."""
        self._half_closed = False

    @property
    def _answering(self) -> bool:
        """Whether somebody has been promised a reply."""
        return bool(self.pipeline) or (self._active is not None and not self._active.response_complete)

    # ---- time ----

    def look(self, now: float) -> None:
        """Cut the connection if the client has kept us waiting for too long, or if it cannot be told: whatever is wrong
        with one connection, the others are looked at, and the server goes on. Called about once a second."""
        try:
            self._look(now)
        except Exception as error:
            log.error("a connection failed and is cut", error=type(error).__name__, at=places_of(error))
            self.transport.abort()

    def _look(self, now: float) -> None:
        if self._half_closed:
            self._probe()
        if self._send_deadline is not None and now > self._send_deadline:
            self._limits.count("send", now)
            self.transport.abort()
        elif self._deadline is not None and now > self._deadline[0]:
            reason = self._deadline[1]
            if reason == "body" and self.flow.read_paused:
                # It is we who do not read.
                self._deadline = now + BODY_IDLE_S, reason
                return
            self._limits.count(reason, now)
            self._fail(Problem(408, f"the {reason} of the request did not come in time"))

    def _expect_head(self) -> None:
        self._in_head, self._head_bytes = True, 0
        self._deadline = time.monotonic() + HEAD_S, "head"

    # ---- what asyncio and the parser tell ----

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        try:
            super().connection_made(transport)
            if len(self.connections) > self._limits.most + RESERVE // 2:
                self._limits.count("connections", time.monotonic())
                transport.abort()
                return
            self._expect_head()
        except Exception:
            transport.abort()  # nobody would look at it
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._half_closed = False
        if self._active is not None and not self._active.response_complete:
            # uvicorn tells the newest request only.
            self._active.disconnected = True
            self._active.message_event.set()

    def data_received(self, data: bytes) -> None:
        if self._broken is not None:
            return
        self._unset_keepalive_if_required()
        reading, num_read, in_head, num_heads = self.cycle, self._body_bytes, self._in_head, self._num_heads
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            self._limits.count("malformed", time.monotonic())
            known = str(error) not in UNKNOWN_VERSION
            self._fail(Problem(400, "this is not a valid HTTP request") if known else _other_version())
            return
        if self._in_head:
            if in_head and num_heads == self._num_heads:
                self._head_bytes += len(data)  # else it holds what came before this head too
            if self._head_bytes > MAX_HEAD:
                self._limits.count("head_size", time.monotonic())
                self._fail(_head_too_large())
        elif reading is self.cycle and reading is not None and reading.more_body:
            self._framing_bytes += len(data) - (self._body_bytes - num_read)
            if self._framing_bytes > MAX_HEAD + FRAMING_RATIO * self._body_bytes:
                self._limits.count("framing", time.monotonic())
                self._fail(Problem(400, "the chunks of the body are next to nothing but frame"))

    def _feed(self, data: bytes) -> None:
        """Raises HttpParserError. A request that asks for another protocol is answered as if it had not: the parser
        stops behind its head, so a second one reads the body, and the connection ends with the reply."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.cycle.keep_alive = False
            if framing := _framing(self.headers):
                self.cycle.more_body = True
                self._deadline = time.monotonic() + BODY_IDLE_S, "body"
                self.parser = httptools.HttpRequestParser(_Body(self))
                self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + b"\r\n" + data[upgrade.args[0] :])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        # What comes behind a body is no header: nobody has looked at who may ask with it.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._num_heads += 1
        self._body_began, self._body_bytes, self._framing_bytes = time.monotonic(), 0, 0
        self._deadline = self._body_began + BODY_IDLE_S, "body"
        self.app = self._served
        if self.parser.get_http_version() not in VERSIONS:
            self._limits.count("malformed", self._body_began)
            self.app = _other_version().response()
        elif len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > MAX_HEAD:
            self._limits.count("head_size", self._body_began)
            self.app = _head_too_large().response()
        elif len(self.connections) > self._limits.most:
            self._limits.count("connections", self._body_began)
            self.app = self._only_probes
        if not self.url.startswith((b"/", b"*")):
            cast(MutableMapping[str, Any], self.scope)["authority"] = _authority(self.url)
        super().on_headers_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, cast(Any, until_the_stop(app, cycle)))

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._body_bytes += len(body)
        latest = self._body_began + BODY_GRACE_S + self._body_bytes / BODY_BYTES_PER_S
        self._deadline = min(time.monotonic() + BODY_IDLE_S, latest), "body"

    def on_message_complete(self) -> None:
        self._deadline = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._answering or self.transport.is_closing():
            return
        if self._broken is not None:
            self._write(self._broken)
        elif self._half_closed:
            self.transport.close()

    def pause_writing(self) -> None:
        self._send_deadline = time.monotonic() + SEND_S
        super().pause_writing()

    def resume_writing(self) -> None:
        self._send_deadline = None
        super().resume_writing()

    # ---- clients that have sent all they will ----

    def eof_received(self) -> bool:  # type: ignore[override]
        """True keeps the connection: a client may close its half and still wait for its reply. Whether it does, or has
        gone altogether, only shows when it is sent something."""
        if not self._answering or self.cycle.more_body or self._in_head or self.scope["http_version"] != "1.1":
            return False
        self._half_closed = True
        self._probe()
        return True

    def _probe(self) -> None:
        """Something that clients pass over: an interim response, or a comment in a stream of events, which is all that
        we send in chunks. To a socket that nobody has any more it ends in an error."""
        if self._active is None or self._active.response_complete:
            return
        if not self._active.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self._active.chunked_encoding:
            self.transport.write(b"3\r\n:\n\n\r\n")

    # ---- refusals ----

    def _fail(self, problem: Problem) -> None:
        """The request that is being read cannot be: those before it are answered, then this is, and that is the end."""
        self._broken, self._deadline, self._in_head = problem, None, False
        unfinished = self.cycle
        if unfinished is not None and unfinished.more_body and not unfinished.response_complete:
            if unfinished is self._active:
                unfinished.disconnected = True
                unfinished.message_event.set()
                if unfinished.response_started:
                    self.transport.close()
                self._write(problem)
                return
            self.pipeline.popleft()
        if self._answering:
            self.flow.pause_reading()
        else:
            self._write(problem)

    def _write(self, problem: Problem) -> None:
        """Answer outside any request, and close."""
        if self.transport.is_closing():
            return
        response = problem.response()
        lines = [STATUS_LINE[problem.status]]
        lines += [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        self.transport.write(b"".join([*lines, b"connection: close\r\n\r\n", bytes(response.body)]))
        self.transport.close()

    async def _only_probes(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application while there are too many connections: health can be asked for, nothing else."""
        if scope["path"] in OPEN_PATHS:
            await self._served(scope, receive, send)
            return
        problem = Problem(503, "too many connections; try again later", headers={"connection": "close"})
        await problem.response(scope["path"])(scope, receive, send)
