"""What is no request as libraries write it: other protocols, odd heads, odd framing; and names that lead elsewhere."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.attack_target import ADMIN_KEY, KEY

BODY = json.dumps({"text": "x", "sampling_params": {"max_new_tokens": 2}}).encode()
CLIENT_HELLO = bytes.fromhex("16030100c5010000c10303") + bytes(range(64)) * 3
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"
"""A frame of HTTP/2, of what the preface begins."""
ELSEWHERE = (
    *("../../../../etc/passwd", "..", ".", "/", "//", "/dev/zero", "/proc/self/mem", "/proc/self/environ", "~root"),
    *("..%2f..%2fetc%2fpasswd", "..\\..\\x", "\\\\host\\share", "file:///etc/passwd", "http://127.0.0.1:1/", "-x"),
    *(
        "ghost:../..",
        "ghost:",
        "ghost:\x00",
        "a\x00b",
        "x\n",
        "a" * 5000,
        "\u2025/\u2025/etc",
        "\u202e",
        "\U0001d7d9",
        "CON",
    ),
    *("ghost:a:b", "base:", ":x", "x:y:z", "{{7*7}}", "${HOME}", "$(id)", "; ls", "%s%n", "/tmp/", "\ud800"),
)
"""Names of models, adapters, sessions and folders that lead to where nobody meant."""
NAMED = (
    *(
        ("/v1/completions", "model"),
        ("/v1/chat/completions", "model"),
        ("/generate", "lora_path"),
        ("/encode", "model"),
    ),
    *(("/load_lora_adapter", "lora_path"), ("/load_lora_adapter", "lora_name"), ("/unload_lora_adapter", "lora_name")),
    *(("/v1/load_lora_adapter", "lora_path"), ("/open_session", "session_id"), ("/close_session", "session_id")),
    *(("/update_weights_from_disk", "model_path"), ("/abort_request", "rid"), ("/v1/embeddings", "model")),
    *(("/generate", "rid"), ("/v1/completions", "cache_salt"), ("/start_profile", "profile_id")),
)
NUMBERS = (
    "\u0661\u0662",
    "\uff11\uff12",
    "\u00b2",
    "\u2163",
    "1e3",
    " 1",
    "1 ",
    "0b1",
    "-0",
    "1_000",
    "",
    "NaN",
    "\u221e",
    "true",
    "null",
)
"""In a query, in the place of a number."""


def _head(line: str, *more: str, key: str = KEY, host: str = "localhost") -> bytes:
    lines = (line, f"Host: {host}", f"Authorization: Bearer {key}", "Content-Type: application/json", *more)
    return "".join(f"{each}\r\n" for each in lines).encode("utf-8", "surrogatepass") + b"\r\n"


def _post(*more: str, path: str = "/generate") -> bytes:
    return _head(f"POST {path} HTTP/1.1", *more)


def _chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return _post("Transfer-Encoding: chunked") + b"".join(pieces) + end


def _chunk(size: str, data: bytes = BODY) -> bytes:
    return size.encode() + b"\r\n" + data + b"\r\n"


def _upgrade(source: random.Random) -> bytes:
    wanted = source.choice(("websocket", "h2c", "TLS/1.0", "websocket, h2c", "", "\t"))
    more = [f"Upgrade: {wanted}", source.choice(("Connection: Upgrade", "Connection: Upgrade, HTTP2-Settings"))]
    more += ["Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13", "HTTP2-Settings: AAMAAABk"]
    if source.random() < 0.5:
        return _head(f"GET {source.choice(('/health', '/generate', '/v1/realtime'))} HTTP/1.1", *more) + bytes(60)
    return _post(*more, f"Content-Length: {len(BODY)}") + BODY + source.choice((b"", PREFACE, b"\x81\x05hello"))


def _protocol(source: random.Random) -> bytes:
    return source.choice(
        (
            *(PREFACE + SETTINGS, PREFACE, CLIENT_HELLO, b"GET /health\r\n", b"GET /health HTTP/0.9\r\n\r\n"),
            *(b"SSH-2.0-x\r\n", b"\x05\x01\x00", b"\x00" * 200, b"\r\n" * 500, b"HTTP/1.1 200 OK\r\n\r\n"),
            _head("GET /health HTTP/1.0", "Connection: keep-alive"),
            _head("GET /health HTTP/2.0"),
            _head("GET /health HTTP/1.9"),
            _head("GET /health http/1.1"),
            _head("GET  /health  HTTP/1.1"),
            _head("GET\t/health\tHTTP/1.1"),
            _head("GET http://localhost/health HTTP/1.1"),
            _head("GET http://[::1]:80@localhost:99999/health HTTP/1.1"),
            _head("OPTIONS * HTTP/1.1"),
            _head("GET * HTTP/1.1"),
            _head("CONNECT localhost:1 HTTP/1.1") + BODY,
            _head("GET /%ff%fe%00/\ud800 HTTP/1.1"),
            b"GET /health HTTP/1.1\nHost: localhost\n\n",
            b"GET /health HTTP/1.1\rHost: localhost\r\r",
        )
    )


def _heads(source: random.Random) -> bytes:
    count = source.choice((10, 100, 500, 3_000, 20_000))
    length = f"Content-Length: {len(BODY)}"
    odd = source.choice(
        (
            tuple(f"x-{n}: {n}" for n in range(count)),
            tuple("x: y" for _ in range(count)),
            tuple("Authorization: Bearer x" for _ in range(min(count, 100))),
            ("x: a\r\n b\r\n\tc",),
            ("x : y",),
            (" x: y",),
            ("x\x00: y",),
            ("x: \x00\x01\x7f",),
            ("x: a\rb",),
            ("\u00fc: \u00fc",),
            ("Host: localhost",),
            ("Host: evil.example",),
            ("Content-Type: text/plain",),
            (length,),
            ("Content-Length: 1",),
            ("Content-Length: +5",),
            ("Content-Length: 0x10",),
            (f"Content-Length: {len(BODY)}, {len(BODY)}",),
            ("Content-Length: \u0661\u0662",),
            ("Transfer-Encoding: chunked",),
            ("Transfer-Encoding: identity",),
            ("Transfer-Encoding: chunked, chunked",),
            ("Transfer-Encoding: \x0bchunked",),
            ("Expect: 100-continue",),
            ("Expect: 200-ok",),
            ("X-Request-Id: ../../x\u2028",),
            ("Connection: close, keep-alive, Host, Authorization",),
        )
    )
    return _post(*(odd if source.random() < 0.5 else ()), length, *odd) + BODY


def _framing(source: random.Random) -> bytes:
    size, most = f"{len(BODY):x}", f"{len(BODY)}"
    told = source.choice(
        (
            *(
                f"{size};a=b;c",
                f"{size};" + "x" * 9_000,
                f"{size} ;a",
                f" {size}",
                f"{size}\t",
                f"0x{size}",
                f"+{size}",
            ),
            *(f"-{size}", f"{'0' * 3000}{size}", "f" * 16, "7fffffffffffffff", "fffffffffffffffff", f"{size}_0", ""),
            *(f'{size};a="\r\n"', most, "\u0661", f"{size}\x00"),
        )
    )
    tail = source.choice(
        (
            *(
                b"0\r\n\r\n",
                b"0\r\nA: b\r\n\r\n",
                b"0\r\nAuthorization: Bearer x\r\nContent-Length: 9\r\n\r\n",
                b"00\r\n\r\n",
            ),
            *(
                b"0\r\n" + b"x: y\r\n" * 3_000 + b"\r\n",
                b"0;x\r\n\r\n",
                b"0\r\n",
                b"0\n\n",
                b"",
                b"0\r\nTransfer-Encoding: gzip\r\n\r\n",
            ),
            b"0\r\n\r\n" + _head("GET /health HTTP/1.1"),
        )
    )
    match source.randrange(4):
        case 0:
            return _chunked(_chunk(told), end=tail)
        case 1:
            return _chunked(*(_chunk("1", bytes([byte])) for byte in BODY), end=tail)
        case 2:
            return _chunked(_chunk(size, BODY + b"x"), end=tail)
    return _chunked(_chunk(size), _chunk(told, b"y" * source.choice((0, 1, 70_000))), end=tail)


WIRES: tuple[Callable[[random.Random], bytes], ...] = (_upgrade, _protocol, _heads, _framing)


def odd_wire(source: random.Random) -> bytes:
    """Bytes of a client that speaks another language, or ours in a way of its own."""
    return source.choice(WIRES)(source)


def named_elsewhere(source: random.Random) -> tuple[str, Mapping[str, Any]]:
    """(path, body) of a request with a name that leads elsewhere."""
    path, field = source.choice(NAMED)
    name: Any = source.choice(ELSEWHERE)
    body: dict[str, Any] = {"lora_name": "x", "lora_path": "ghost:a"} if "lora" in path else {}
    if path.startswith(("/v1/c", "/generate", "/v1/e", "/encode")):
        body = {"prompt": "x"} if path == "/v1/completions" else {"text": "x"}
        body = {"messages": [{"role": "user", "content": "x"}]} if "chat" in path else body
        body = {"input": "x"} if path == "/v1/embeddings" else body
    return path, {**body, field: source.choice((name, name, name, [name], {name: name}, [[name]], 0, True))}


def odd_query(path: str, source: random.Random) -> bytes:
    """A question with things in its query that are no numbers, or too many."""
    names = ("timeout", "timeout_s", "detail", "rid", "abort_all", "limit", "n", "model", "replicas")
    words = [
        f"{source.choice(names)}={source.choice((*NUMBERS, *ELSEWHERE))}" for _ in range(source.choice((1, 2, 300)))
    ]
    query = "&".join(words).encode("utf-8", "surrogatepass").hex(" ").split()
    line = f"{source.choice(('GET', 'POST'))} {path}?{''.join(f'%{byte}' for byte in query)} HTTP/1.1"
    return _head(line, "Content-Length: 0", "Connection: close", key=ADMIN_KEY)
