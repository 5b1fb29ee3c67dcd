"""Reading a request's body: bounded in size, decoded strictly, with errors that name the field."""

from __future__ import annotations

import difflib
import re
from typing import TypeVar, get_type_hints

import msgspec
from starlette.requests import Request

from pawl.http.errors import Problem

Body = TypeVar("Body", bound=msgspec.Struct)


async def read_body(request: Request, limit: int) -> bytes:
    """The raw body of at most `limit` bytes; more is refused with 413, before it is read where its length is known."""
    declared = request.headers.get("content-length")
    if declared is not None and declared.isdecimal() and int(declared) > limit:
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
    return b"".join(chunks)


def decode(data: bytes, kind: type[Body]) -> Body:
    """`data` as JSON of the shape `kind`; anything else is refused with 400 and a message that names the field."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong_shape(str(error), kind) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply", code="invalid_json") from None


def _too_large(limit: int) -> Problem:
    return Problem(413, f"the body is larger than the {limit} bytes this server takes", code="body_too_large")


def _wrong_shape(text: str, kind: type[msgspec.Struct]) -> Problem:
    """msgspec's words with the field in front: `temperature: expected number, got string`."""
    unknown = re.search(r"unknown field `([^`]*)`", text)
    place = re.search(r" - at `\$\.?([^`]*)`$", text)
    where = place[1] if place else ""
    if unknown is not None:
        name = f"{where}.{unknown[1]}" if where else unknown[1]
        close = difflib.get_close_matches(unknown[1], get_type_hints(kind) if not where else (), 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return Problem(400, f"unknown field {name!r}{hint}", param=name, code="unknown_field")
    missing = re.search(r"required field `([^`]*)`", text)
    if missing is not None:
        name = f"{where}.{missing[1]}" if where else missing[1]
        return Problem(400, f"the field {name!r} is missing", param=name, code="missing_field")
    what = text[: place.start()] if place else text
    what = (what[0].lower() + what[1:]).replace("`", "")
    message = f"{where}: {what}" if where else f"the body: {what}"
    return Problem(400, message, param=where or None, code="wrong_type")
