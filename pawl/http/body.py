"""Reading a request's body: bounded in bytes and in values before it is decoded, strictly, to a typed struct."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import Request

from pawl.actors import fields
from pawl.http.errors import Problem

Body = TypeVar("Body", bound=msgspec.Struct)

MAX_VALUES = 500_000
"""Numbers, strings and so on of one body. Decoding them all takes up to 50 ms, during which nothing else runs."""


MAX_CONTAINERS = 100_000
"""Lists and objects, which take longer."""
UNFINISHED_BODIES = 4
"""Bodies of the largest size that may be under way at a time, together."""


class BodyBudget:
    """Bytes of all bodies that are not whole yet: many that are sent slowly must not fill the memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def take(self, count: int) -> None:
        """Raises Problem when there is no room for `count` more bytes."""
        if self.held + count > self._most:
            raise Problem(503, "too many request bodies are under way; try again later", code="too_many_bodies")
        self.held += count

    def give_back(self, count: int) -> None:
        """The body is whole, refused or gone."""
        self.held -= count


async def read_body(request: Request, limit: int, budget: BodyBudget) -> bytes:
    """The raw body of at most `limit` bytes; more is refused with 413, before it is read where its length is known."""
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    body = bytearray()
    try:
        async for chunk in request.stream():
            if len(body) + len(chunk) > limit:
                raise _too_large(limit)
            budget.take(len(chunk))
            body += chunk
        return bytes(body)
    finally:
        budget.give_back(len(body))


def decode(data: bytes, kind: type[Body]) -> Body:
    """`data` as JSON of the shape `kind`; anything else is refused with a message that names the field."""
    # What separates or opens values, in strings too: never fewer than there are values, and counted far faster.
    if len(data) > MAX_CONTAINERS:
        num_containers = data.count(b"[") + data.count(b"{")
        if num_containers > MAX_CONTAINERS or num_containers + data.count(b",") > MAX_VALUES:
            text = f"the body holds more than {MAX_VALUES} values, or {MAX_CONTAINERS} lists and objects"
            raise Problem(413, text, code="body_too_large")
    return fields.decode(data, kind)


def decode_fields(data: bytes, query: dict[str, str], kind: type[Body]) -> Body:
    """A flat body of the shape `kind`, whose fields may come in the query instead, as text; refused as by `decode`."""
    if not query:
        return decode(data or b"{}", kind)
    if data.strip() not in (b"", b"{}"):
        raise Problem(400, "send the fields in the query or in the body, not in both")
    return fields.convert(query, kind, strict=False)


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body is larger than the {limit} bytes this server takes", code="body_too_large")
