"""What a client is told when it does not get what it asked for, in the two shapes that clients know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from pawl.actors.messages.adapters import UNREAD as ADAPTER_UNREAD
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import Done, Refused
from pawl.actors.messages.weights import UNEXCHANGED
from pawl.actors.messages.weights import UNREAD as WEIGHTS_UNREAD
from pawl.actors.sink import Delta
from pawl.actors.text.invalid import InvalidRequest
from pawl.lifecycle.states import ABORT_CAUSES, Cause
from pawl.loops.recovery import FAILED_ORDER

STATUS_OF_CAUSE: Mapping[Cause, int] = {
    Cause.CLIENT: 499,
    Cause.DISCONNECT: 499,
    Cause.TIMEOUT: 408,
    Cause.OVERLOADED: 503,
    Cause.INVALID: 400,
    Cause.GRAMMAR: 400,
    Cause.ADAPTER: 500,
    Cause.TOO_LONG: 400,
    Cause.NEVER_FITS: 422,
    Cause.WORKER_LOST: 500,
    Cause.DRAINED: 503,
    Cause.INTERNAL: 500,
}
"""HTTP status for each cause of an abort."""

MESSAGE_OF_CAUSE: Mapping[Cause, str] = {
    Cause.CLIENT: "the request was aborted",
    Cause.DISCONNECT: "the client went away",
    Cause.TIMEOUT: "the request took longer than it may",
    Cause.OVERLOADED: "the server is overloaded; try again later",
    Cause.INVALID: "the request is not valid",
    Cause.GRAMMAR: "the grammar is not valid",
    Cause.ADAPTER: "the adapter cannot be read",
    Cause.TOO_LONG: "the prompt is longer than the model's context",
    Cause.NEVER_FITS: "the request needs more memory than the server has; shorten it",
    Cause.WORKER_LOST: "the worker that computed the request was lost",
    Cause.DRAINED: "the server is shutting down",
    Cause.INTERNAL: "the server failed",
}

CODE_OF_CAUSE: Mapping[Cause, str] = {Cause.TOO_LONG: "context_length_exceeded"}
"""Where OpenAI's API has its own word for a cause; elsewhere the cause is the code."""

FAILURES = (FAILED_ORDER, WEIGHTS_UNREAD, UNEXCHANGED, ADAPTER_UNREAD)
"""Words of replies to orders at which the server itself has failed."""

RETRY_AFTER_S = 1

LIKE_OPENAI = ("/v1/", "/pooling", "/invocations")
"""How paths begin whose errors have the shape of OpenAI's API."""


class Problem(Exception):
    """A failure with the HTTP status it means. `param` is the field at fault by the name the client used."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        if status in (429, 503):
            self.headers.setdefault("retry-after", str(RETRY_AFTER_S))

    @property
    def type(self) -> str:
        """OpenAI's `error.type`."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def renamed(self, names: Mapping[str, str]) -> Problem:
        """The same, in the client's words: `names` maps beginnings of our names to the route's."""
        # Only words with an underscore: others ("text") may be plain English.
        message = re.sub(r"[a-z]+_\w+(\.\w+)*", lambda match: _renamed(match[0], names), self.message)
        param = _renamed(self.param, names) if self.param else None
        return Problem(self.status, message, param, self.code, self.headers)

    def body(self, openai: bool) -> dict[str, Any]:
        """The JSON body: nested as OpenAI does, or the short native form."""
        if openai:
            return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}
        return {"error": {"message": self.message}}

    def body_at(self, path: str) -> dict[str, Any]:
        """In the shape of the API that the path belongs to."""
        return self.body(path.startswith(LIKE_OPENAI))

    def response(self, path: str = LIKE_OPENAI[0]) -> Response:
        """Where no path is known, in the shape of OpenAI's API."""
        return json_response(self.body_at(path), self.status, self.headers)


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """The name of a field with its longest beginning in `names` replaced."""
    beginning = name
    while beginning not in names:
        beginning, dot, _ = beginning.rpartition(".")
        if not dot:
            return name
    return names[beginning] + name[len(beginning) :]


def json_response(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """`body` as JSON."""
    return Response(msgspec.json.encode(body), status, dict(headers or {}), media_type="application/json")


DONE_EVENT = b"data: [DONE]\n\n"
"""What ends streams of OpenAI's older routes and of SGLang's own."""


def error_event(problem: Problem) -> bytes:
    """The server-sent event for a failure that ends a stream under way, in OpenAI's shape."""
    return b"data: " + msgspec.json.encode(problem.body(openai=True)) + b"\n\n"


def status_of(reply: Reply, refused: int = 400) -> int:
    """Of an order that was not done: 503 where nobody answered, 500 where the server failed at it, else `refused`."""
    failed = any(words in reply.message for words in FAILURES)
    return 503 if reply.unserved else 500 if failed else refused


def from_invalid(error: InvalidRequest) -> Problem:
    """A check of ours that failed at the edge."""
    return Problem(error.status, error.message, error.param, error.code or _code(error.cause))


def from_refused(refused: Refused) -> Problem:
    """A request that never reached the scheduler."""
    return Problem(refused.status, refused.message, refused.param, _code(refused.cause))


def from_done(done: Done) -> Problem:
    """A request that was aborted."""
    return Problem(STATUS_OF_CAUSE[done.cause], done.message or MESSAGE_OF_CAUSE[done.cause], code=_code(done.cause))


def from_delta(delta: Delta) -> Problem | None:
    """The failure that a request ended with, if it did. An abort that the client itself asked for is none: it gets what
    there is, with the finish reason abort."""
    if delta.refusal is not None:
        return from_refused(delta.refusal)
    if delta.done is not None and delta.done.cause in ABORT_CAUSES and delta.done.cause is not Cause.CLIENT:
        return from_done(delta.done)
    return None


def _code(cause: Cause) -> str | None:
    return None if cause is Cause.INVALID else CODE_OF_CAUSE.get(cause, cause.value)
