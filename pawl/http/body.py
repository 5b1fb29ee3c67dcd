"""Reading a request's body: bounded in bytes and in values before it is decoded, strictly, to a typed struct."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from pawl.actors import fields
from pawl.http.errors import Problem
from pawl.http.guard import RAW
from pawl.http.turnstile import Turnstile, turn_of

Body = TypeVar("Body", bound=msgspec.Struct)

MAX_VALUES = 500_000
"""Entries of all lists and objects of one body. Decoding as many takes up to 20 ms, during which nothing else runs."""
MAX_STRINGS = 50_000
"""Strings, names of members among them, which take longer."""
MAX_CONTAINERS = 20_000
"""Lists and objects, which take longer still."""
MAX_LONG_NUMBERS = 1_000
"""Pieces of 20 digits in numbers: a number with more digits than a float can hold takes as long as a hundred others."""
MAX_PIECE = 64 << 10
"""Bytes that are counted in one turn."""
UNFINISHED_BODIES = 4
"""Bodies of the largest size that may be under way at a time, together."""

_DIGITS = bytes.maketrans(b"0123456789", b"0" * 10)
_LONG = b"0" * 20


class BodyMeter:
    """Counts what a body of JSON holds while it arrives, so that the work of decoding it is known, and bounded, before
    it begins. Text inside strings is not counted."""

    def __init__(self) -> None:
        self.num_values = self.num_containers = self.num_long_numbers = self.num_quotes = 0
        self._escape = b""
        """A backslash at the end of the last piece: it belongs to what comes next."""

    def take(self, piece: bytes) -> Problem | None:
        """Why the body is refused, once it holds more than one may."""
        piece, self._escape = self._escape + piece, b""
        if b"\\" in piece:  # one byte is found much sooner than two
            piece = self._unescaped(piece)
        parts = piece.split(b'"')
        outside = b"".join(parts[self.num_quotes % 2 :: 2])
        self.num_quotes += len(parts) - 1
        self.num_containers += outside.count(b"[") + outside.count(b"{")
        self.num_values += outside.count(b",")
        self.num_long_numbers += outside.translate(_DIGITS).count(_LONG)
        return self._refusal()

    def _unescaped(self, piece: bytes) -> bytes:
        """The piece without quotes that end no string, and without a backslash at its end that waits for more."""
        self._escape = b"\\" if (len(piece) - len(piece.rstrip(b"\\"))) % 2 else b""
        piece = piece.removesuffix(self._escape)
        return piece.replace(rb"\\", b"").replace(rb"\"", b"") if rb"\"" in piece else piece

    def _refusal(self) -> Problem | None:
        for count, most, what in (
            (self.num_values, MAX_VALUES, "values"),
            (self.num_quotes // 2, MAX_STRINGS, "strings"),
            (self.num_containers, MAX_CONTAINERS, "lists and objects"),
            (self.num_long_numbers, MAX_LONG_NUMBERS, "numbers of 20 digits"),
        ):
            if count > most:
                return Problem(413, f"the body holds more than {most} {what}", code="body_too_large")
        return None


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


async def read_body(request: Request, limit: int, budget: BodyBudget, *, json: bool = True) -> bytearray:
    """The raw body of at most `limit` bytes; more is refused with 413, before it is read where its length is known, and
    so is one that is `json` and holds too much to decode (see `BodyMeter`)."""
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    body, meter, num_bytes = bytearray(), BodyMeter(), 0
    refusal: Problem | None = None
    try:
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes > limit:
                raise _too_large(limit)
            if refusal is None:
                budget.take(len(chunk))
                body += chunk
                refusal = await _metered(meter, chunk, request.scope, num_bytes > MAX_PIECE) if json else None
            # Else the rest is read all the same: to a client that still sends, a closed connection says nothing.
        if refusal is not None:
            raise refusal
        await turn_of(request.scope)
        return body
    finally:
        budget.give_back(len(body))


async def _metered(meter: BodyMeter, chunk: bytes, scope: MutableMapping[str, Any], large: bool) -> Problem | None:
    """Why the body is refused. The pieces of a large one take turns with what others do, and rest."""
    if not large:
        await turn_of(scope)
        return meter.take(chunk)
    turnstile: Turnstile = scope["turnstile"]
    for begin in range(0, len(chunk), MAX_PIECE):
        await turn_of(scope)
        before = turnstile.worked()
        if refusal := meter.take(chunk[begin : begin + MAX_PIECE]):
            return refusal
        await turnstile.rest(turnstile.worked() - before)
    return None


def decode_fields(data: bytes | bytearray, query: dict[str, Any], kind: type[Body]) -> Body:
    """A flat body of the shape `kind`, whose fields may come in the query instead, as text. Raises InvalidRequest, or
    Problem when both hold fields."""
    if not query:
        return fields.decode(data or b"{}", kind)
    if data.strip() not in (b"", b"{}"):
        raise Problem(400, "send the fields in the query or in the body, not in both")
    return fields.convert(query, kind, strict=False)


def is_raw(request: Request) -> bool:
    """Whether the body says that it is bytes, and no JSON."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == RAW


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body is larger than the {limit} bytes this server takes", code="body_too_large")
