"""What can be done to an input on its way: JSON told in other words, bodies in odd pieces, clients that leave in the
middle of anything; and what a reply must be like whatever was asked."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

NUMBERS = (
    *("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1E400", "-0", "-0.0", "1e1", "1.0", "0x10", "01", "+1", ".5"),
    *("1" * 400, "9" * 5000, "1e-400", "0." + "0" * 5000 + "1", str(1 << 63), str(-(1 << 63) - 1), str(1 << 64), "1_0"),
)
"""Of which some are no JSON."""
TEXTS = (
    *(r'"\ud800"', r'"\udc00\ud800"', r'"\u0000"', '"\x00"', '"\x1f"', r'"\x41"', "'x'", r'"é\u0301"', '"\u202e"'),
    *('"\ufeff"', '"\uffff"', r'"\u"', r'"\uD83D\uDE00"', '"' + "\u0300" * 3000 + '"', '"x', '"\U0010ffff"'),
)
DEPTHS = (3, 100, 1_000, 1_025, 5_000, 100_000)
LEAVES_AFTER = (0, 1, 12, 200, 400, 2_000)
"""Bytes of the reply that a client who leaves has read."""
MOST_SAID = 2_000
"""Characters that an error says at the most, however much it was sent."""
_VALUE = re.compile(r'(?<=[:\[,])\s*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null)')
_MEMBER = re.compile(r'"[^"\\]*": ("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null)')


def retold(data: bytes, source: random.Random) -> bytes:
    """The same JSON with a place in it as no library would write it, and often as none would read it."""
    text = data.decode()
    match source.randrange(7):
        case 0:
            return _replaced(text, _VALUE, source.choice(NUMBERS), source).encode("utf-8", "surrogatepass")
        case 1:
            return _replaced(text, _VALUE, source.choice(TEXTS), source).encode("utf-8", "surrogatepass")
        case 2:
            depth, pair = source.choice(DEPTHS), source.choice(("[]", "{}"))
            inside = '{"a":' if pair == "{}" else "["
            return _replaced(text, _VALUE, inside * depth + "1" + pair[1] * depth, source).encode()
        case 3:  # a member twice, with two values
            found = [match[0] for match in _MEMBER.finditer(text)]
            again = source.choice(found).partition(": ")[0] if found else '"a"'
            return f"{text[:-1]}, {again}: {source.choice(NUMBERS[:12])}}}".encode()
        case 4:
            escaped = re.sub(
                "[a-z]", lambda letter: f"\\u{ord(letter[0]):04x}" if source.random() < 0.3 else letter[0], text
            )
            return escaped.encode()
        case 5:
            return text.encode(source.choice(("utf-8-sig", "utf-16", "utf-32", "utf-16-le", "cp037")))
    blank = source.choice((" ", "\n", "\t", "\r\n", "\x00", "\x0b", "\u00a0", "/**/", ",", " " * 70_000))
    at = source.choice((0, len(text), *(place.start() for place in re.finditer("[:,{}]", text))))
    return (text[:at] + blank + text[at:]).encode()


def _replaced(text: str, place: re.Pattern[str], by: str, source: random.Random) -> str:
    found = list(place.finditer(text))
    if not found:
        return by
    one = source.choice(found)
    return text[: one.start(1)] + by + text[one.end(1) :]


def chunks(data: bytes, source: random.Random) -> bytes:
    """As a chunked body, now and then one that is none."""
    out, at = [], 0
    while at < len(data):
        size = source.choice((1, 7, 100, 4_000))
        piece = data[at : at + size]
        told = source.choice(
            (f"{len(piece):x}",) * 12 + (f"{len(piece):X};a=b", f"000{len(piece):x}", "-1", "f" * 17, "")
        )
        out.append(f"{told}\r\n".encode() + piece + b"\r\n")
        at += size
    return b"".join(out) + source.choice((b"0\r\n\r\n",) * 6 + (b"0\r\nA: b\r\n\r\n", b"", b"0\r\n"))


class Ending(NamedTuple):
    """How the client behaves once it has begun to send."""

    sends: float = 1.0
    """Share of its bytes that it sends."""
    reads: int | None = None
    """Bytes of the reply after which it has gone; None: it reads to the end."""
    half_closes: bool = True
    """Whether it says that nothing more comes from it."""
    pieces: int = 1
    """Into so many its bytes are cut, each sent by itself."""
    pause_s: float = 0.0
    """Before each of them but the first."""


def ending(source: random.Random) -> Ending:
    """Most of them leave."""
    if source.random() < 0.2:
        return Ending(pieces=source.choice((2, 5, 40)))
    sends = source.choice((1.0, 1.0, 1.0, source.random()))
    return Ending(sends, source.choice(LEAVES_AFTER), source.random() < 0.5, source.choice((1, 1, 3)))


# ---- replies ----


def wrong_in(reply: bytes, path: str) -> str | None:
    """What a whole reply lacks of the form that errors have; None: nothing."""
    head, _, body = reply.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    if not re.fullmatch(r"HTTP/1\.1 [1-5]\d\d [ -~]*", lines[0]):
        return f"status line {lines[0][:100]!r}"
    if int(lines[0].split()[1]) < 400:
        return None
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    if not headers.get("content-type", "").startswith("application/json"):
        return f"an error of type {headers.get('content-type')!r}"
    try:
        error = json.loads(body[: int(headers["content-length"])])["error"]
    except (ValueError, KeyError, TypeError) as problem:
        return f"an error without its body: {problem!r}"
    return _wrong_error(error, path.startswith(("/v1/", "/pooling", "/invocations")))


def _wrong_error(error: Mapping[str, Any], openai: bool) -> str | None:
    if not isinstance(error.get("message"), str) or not 0 < len(error["message"]) <= MOST_SAID:
        return f"the message {str(error.get('message'))[:100]!r}"
    if openai and not {"type", "param", "code"} <= set(error):
        return f"members {sorted(error)}"
    return None
