"""What attackers send: aimed shots at single routes, and sieges of connections. Run by `benchmarks.attacks`.

Every shot is one request whose status is counted; every siege is a handful of connections held for seconds. Each worker
draws the next from its own seed until the time is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple

KEY, ADMIN_KEY, MARK = "key-of-the-attacked-7Q4", "admin-of-the-attacked-9Z1", "marked prompt 5X2"
WORKERS = 3
PATIENCE_S = 10.0
SIEGE_S = 3.0
BIG = (2**31, -(2**31) - 1, 2**63, -(2**63) - 1, 2**64, 10**19, -1, float("1e308"))

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Target(NamedTuple):
    """The server that is attacked."""

    host: str
    port: int

    def head(self, method: str, path: str, length: int, more: str = "", key: str = KEY) -> bytes:
        lines = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
        return f"{lines}Content-Type: application/json\r\nContent-Length: {length}\r\n{more}\r\n".encode()

    async def send(self, data: bytes) -> Stream:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        writer.write(data)
        return reader, writer

    async def post(self, path: str, body: Any, more: str = "", key: str = KEY) -> Stream:
        """`body`: what is sent as JSON, or its bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return await self.send(self.head("POST", path, len(data), more, key) + data)

    async def status(self, path: str, body: Any, more: str = "", key: str = KEY) -> int:
        """Of the whole reply to one request."""
        reader, writer = await self.post(path, body, more + "Connection: close\r\n", key)
        try:
            line = await reader.readline()
            while await reader.read(1 << 16):
                pass
            return int(line.split()[1]) if line else 0
        finally:
            writer.close()


# ---- shots: path, body ----

SAMPLING = {"max_new_tokens": 4, "temperature": 0}
Shot = Callable[[random.Random], tuple[str, Any]]


def _generate(**fields: Any) -> tuple[str, Any]:
    return "/generate", {"text": MARK, "sampling_params": SAMPLING} | fields


def _completion(**fields: Any) -> tuple[str, Any]:
    return "/v1/completions", {"model": "ghost", "prompt": MARK, "max_tokens": 4} | fields


def _chat(message: Mapping[str, Any], **fields: Any) -> tuple[str, Any]:
    messages = [{"role": "user", "content": MARK, **message}]
    return "/v1/chat/completions", {"model": "ghost", "messages": messages, "max_tokens": 4} | fields


def _deep_arguments(source: random.Random) -> tuple[str, Any]:
    arguments = "[" * 100_000 + "]" * 100_000
    call = {"id": "a", "type": "function", "function": {"name": MARK, "arguments": arguments}}
    return _chat({"role": "assistant", "tool_calls": [call]})


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {MARK: value}
    return value


SHOTS: Mapping[str, Shot] = {
    "priority": lambda source: _generate(priority=source.choice(BIG)),
    "token ids": lambda source: _generate(text=None, input_ids=[source.choice(BIG), 101]),
    "seed": lambda source: _completion(seed=source.choice(BIG)),
    "max_tokens": lambda source: _completion(max_tokens=source.choice(BIG)),
    "deep JSON": lambda source: ("/v1/completions", b'{"prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep arguments": _deep_arguments,
    "giant text": lambda source: _completion(prompt=MARK * (4 << 16)),
    "giant ids": lambda source: _generate(text=None, input_ids=[101] * 2_000_000),
    "n times prompts": lambda source: _completion(prompt=["a"] * 20_000, n=128),
    "many choices": lambda source: _completion(n=128, max_tokens=32),
    "tokenize many": lambda source: ("/tokenize", {"prompt": ["a"] * 1_000_000}),
    "tokenize": lambda source: ("/tokenize", {"prompt": MARK * 20_000}),
    "detokenize many": lambda source: ("/detokenize", {"tokens": [101] * 2_000_000}),
    "detokenize": lambda source: ("/detokenize", {"tokens": [101] * 190_000}),
    "logit bias": lambda source: _completion(logit_bias={str(token): 1 for token in range(200_000)}),
    "stop ids": lambda source: _generate(sampling_params=SAMPLING | {"stop_token_ids": list(range(1_000_000))}),
    "stop strings": lambda source: _completion(stop=[MARK * 100] * 10_000),
    "abort many": lambda source: ("/abort_request", {"rid": [f"{MARK} {n}" for n in range(9_999)]}),
    "abort too many": lambda source: ("/abort_request", {"rid": ["x"] * 500_000}),
    "echo and scores": lambda source: _completion(prompt=MARK * 200, echo=True, logprobs=5, n=16, max_tokens=1),
    "template": lambda source: _chat(
        {}, chat_template_kwargs={"chat_template": "{{ 'a' * 10 ** 9 }}", MARK: "x" * 10**6}
    ),
    "template in content": lambda source: _chat({"content": "{% for a in range(10**9) %}{{ a }}{% endfor %}"}),
    "long rid": lambda source: _generate(rid=MARK * 60_000),
    "long salt": lambda source: _completion(cache_salt=MARK * 60_000),
    "surrogates": lambda source: ("/generate", b'{"text":"\\ud800 marked","sampling_params":{"max_new_tokens":2}}'),
    "many keys": lambda source: _generate(**{f"{MARK} {n}": n for n in range(100_000)}),
    "long numbers": lambda source: (
        "/generate",
        b'{"sampling_params":[' + b"1.2345678901234567890123e-300," * 10**5 + b"1]}",
    ),
    "short strings": lambda source: _completion(prompt=[MARK[0]] * 400_000),
    "deep schema": lambda source: _completion(metadata=_nested(900)),
    "session of nobody": lambda source: ("/close_session", {"session_id": MARK}),
}


# ---- sieges: connections that are held ----


async def _slow(target: Target, data: bytes, pieces: int) -> None:
    """Many connections, each of which sends its request a byte at a time and never to its end."""
    streams = [await target.send(data[:16]) for _ in range(40)]
    for _ in range(pieces):
        await asyncio.sleep(SIEGE_S / pieces)
        for _, writer in streams:
            writer.write(b"x")
    for _, writer in streams:
        writer.close()


async def _slow_heads(target: Target) -> None:
    await _slow(target, target.head("POST", "/generate", 100), 20)


async def _slow_bodies(target: Target) -> None:
    streams = [await target.send(target.head("POST", "/generate", 31 << 20) + b'{"text":"' * 10_000) for _ in range(10)]
    await asyncio.sleep(SIEGE_S)
    for _, writer in streams:
        writer.close()


async def _stalled_readers(target: Target) -> None:
    body = {"text": MARK, "stream": True, "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}}
    streams = [await target.post("/generate", body) for _ in range(10)]
    await asyncio.sleep(SIEGE_S)
    for _, writer in streams:
        writer.transport.abort()


async def _vanishing(target: Target) -> None:
    body = {"text": MARK, "stream": True, "sampling_params": {"max_new_tokens": 200, "ignore_eos": True}}
    for _ in range(20):
        reader, writer = await target.post("/generate", body)
        await reader.readline()
        writer.transport.abort()


async def _half_closed(target: Target) -> None:
    for _ in range(10):
        reader, writer = await target.post(*_generate())
        writer.write_eof()
        await reader.readline()
        writer.close()


async def _pipelined(target: Target) -> None:
    path, body = _generate()
    data = json.dumps(body).encode()
    good = target.head("POST", path, len(data)) + data
    for bad in (
        b"\0\1\2 nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ):
        reader, writer = await target.send(good * 5 + bad)
        await reader.read(1 << 16)
        writer.close()


async def _foreign(target: Target) -> None:
    """A web page that would end everybody's requests: if it could, good clients would lose theirs."""
    more = "Origin: https://evil.example\r\n"
    for path, body in (("/abort_request", {"abort_all": True}), ("/flush_cache", {})):
        status = await target.status(path, body, more, ADMIN_KEY)
        if status != 403:
            raise AssertionError(f"a foreign page got {status} from {path}")


async def _wrong_keys(target: Target) -> None:
    for key in ("", "x" * 10_000, KEY[:-1], KEY + "x", ADMIN_KEY[:-1]):
        await target.status("/generate", _generate()[1], key=key)


async def _odd_http(target: Target) -> None:
    path, body = _generate()
    data = json.dumps(body).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in data)
    chunked = "Transfer-Encoding: chunked\r\nConnection: close\r\n"
    head = target.head("POST", path, 0, chunked).replace(b"Content-Length: 0\r\n", b"")
    whole = target.head("POST", path, len(data), "Upgrade: h2c\r\nConnection: upgrade\r\n") + data
    for sent in (
        head + chunks + b"0\r\nHost: evil.example\r\nAuthorization: Bearer nobody\r\n\r\n",
        head + chunks + b"0\r\n" + b"A: b\r\n" * 50_000,
        head + (b"1;" + b"a" * 60_000 + b"\r\na\r\n") * 20,
        target.head("POST", path, len(data), "Host: evil.example\r\nConnection: close\r\n") + data,
        target.head("GET", "/health", 0, f"A: {'b' * 70_000}\r\n"),
        target.head("GET", "/health", 0, "A: b\r\n" * 9_000),
        target.head("POST", path, len(data), "Expect: 100-continue\r\nConnection: close\r\n") + data,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01" + bytes(300),
        whole,
    ):
        reader, writer = await target.send(sent)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(reader.read(1 << 16), 1.0)
        writer.close()


async def _gone_at_each_moment(target: Target) -> None:
    path, body = _generate(stream=True)
    data = json.dumps(body).encode()
    request = target.head("POST", path, len(data)) + data
    for end in (0, 1, 20, len(request) // 2, len(request) - 1, len(request)):
        for _ in range(3):
            _, writer = await target.send(request[:end])
            await asyncio.sleep(0)
            writer.transport.abort()


async def _questions(target: Target) -> None:
    paths = ("/metrics", "/server_info?detail=true", "/openapi.json", "/docs", "/v1/models", "/health_generate")
    for _ in range(5):
        for path in paths:
            reader, writer = await target.send(target.head("GET", path, 0, "Connection: close\r\n", ADMIN_KEY))
            await reader.read()
            writer.close()
        await asyncio.gather(*(target.status("/flush_cache", {}, key=ADMIN_KEY) for _ in range(10)))


async def _flood(target: Target) -> None:
    await asyncio.gather(*(target.status(*_completion()) for _ in range(100)))


SIEGES: Mapping[str, Callable[[Target], Awaitable[None]]] = {
    "slow heads": _slow_heads,
    "slow bodies": _slow_bodies,
    "stalled readers": _stalled_readers,
    "vanishing clients": _vanishing,
    "half-closed": _half_closed,
    "pipelined nonsense": _pipelined,
    "foreign pages": _foreign,
    "wrong keys": _wrong_keys,
    "odd HTTP": _odd_http,
    "gone at each moment": _gone_at_each_moment,
    "questions": _questions,
    "flood": _flood,
}


# ---- fuzz ----

LEAVES: Sequence[Any] = (
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**64,
    1e308,
    "",
    "x",
    MARK,
    "\0",
    "é😊",
    [],
    {},
    [[]],
    [MARK],
    {"a": None},
)


def fuzz(source: random.Random, paths: Mapping[str, Any]) -> tuple[str, Any]:
    """A route of the description, with some of the fields that it names, of any kind."""
    path = source.choice(sorted(path for path, methods in paths.items() if "post" in methods))
    names = ["text", "prompt", "messages", "input_ids", "sampling_params", "stream", "n", "stop", "rid", "tokens", MARK]
    return path, {name: source.choice(LEAVES) for name in source.sample(names, source.randrange(5))}


# ---- the onslaught ----


async def _worker(target: Target, seed: str, until: float, paths: Mapping[str, Any], counts: Counter[str]) -> None:
    source = random.Random(seed)
    everything = [*SHOTS, *SIEGES, *["fuzz"] * 10]
    while time.monotonic() < until:
        name = source.choice(everything)
        try:
            async with asyncio.timeout(PATIENCE_S):
                if name in SIEGES:
                    await SIEGES[name](target)
                    status = 0
                else:
                    path, body = SHOTS[name](source) if name in SHOTS else fuzz(source, paths)
                    key = ADMIN_KEY if path == "/abort_request" and name in SHOTS else KEY
                    status = await target.status(path, body, key=key)
            counts[f"{name}: {status}"] += 1
        except (OSError, TimeoutError, ValueError, IndexError, AssertionError) as error:
            counts[f"{name}: {type(error).__name__} {error}"[:100]] += 1


async def onslaught(target: Target, seconds: float, seed: int) -> Counter[str]:
    """All workers for so long; how often each attack had which end."""
    reader, writer = await target.send(target.head("GET", "/openapi.json", 0, "Connection: close\r\n"))
    description = json.loads((await reader.read()).partition(b"\r\n\r\n")[2])
    writer.close()
    counts: Counter[str] = Counter()
    until = time.monotonic() + seconds
    await asyncio.gather(*(_worker(target, f"{seed}/{n}", until, description["paths"], counts) for n in range(WORKERS)))
    return counts


if __name__ == "__main__":
    # That the server hangs up is what many of these are after.
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    port, seconds, seed = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    print(json.dumps(asyncio.run(onslaught(Target("127.0.0.1", port), seconds, seed))))
