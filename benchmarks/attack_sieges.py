"""Sieges: a handful of connections each, held for seconds or sent what nobody means."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping

from benchmarks.attack_target import ADMIN_KEY, KEY, MARK, Target, completion, generate

SIEGE_S = 3.0


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
        reader, writer = await target.post(*generate())
        writer.write_eof()
        await reader.readline()
        writer.close()


async def _pipelined(target: Target) -> None:
    path, body = generate()
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
        await target.status("/generate", generate()[1], key=key)


async def _odd_http(target: Target) -> None:
    path, body = generate()
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
        target.head("GET", "/v1/models", 0, "Upgrade: websocket\r\nConnection: Upgrade\r\n") + b"\x81\x85" + bytes(9),
        head.replace(b"chunked", b"gzip, chunked") + chunks + b"0\r\n\r\n",
        target.head("POST", path, len(data), "Transfer-Encoding: chunked\r\n") + chunks + b"0\r\n\r\n",
        target.head("POST", path, len(data), f"Content-Length: {len(data)}\r\n") + data,
        target.head("POST", "http://evil.example" + path, len(data), "X: a\r\n folded\r\n") + data,
        b"\r\n" * 100_000,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01" + bytes(300),
        whole,
    ):
        reader, writer = await target.send(sent)
        with contextlib.suppress(ConnectionError, TimeoutError):
            await asyncio.wait_for(reader.read(1 << 16), 1.0)
        writer.close()


async def _gone_at_each_moment(target: Target) -> None:
    path, body = generate(stream=True)
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
    await asyncio.gather(*(target.status(*completion()) for _ in range(100)))


async def _adapters(target: Target) -> None:
    """Adapters that come and go, each loaded twice at once, under requests that name them, some of which leave. Where
    adapters are not enabled all of it is refused."""

    async def one(name: str) -> None:
        load = {"lora_name": name, "lora_path": f"ghost:{name}"}
        await asyncio.gather(*(target.status("/load_lora_adapter", load, key=ADMIN_KEY) for _ in range(2)))
        reader, writer = await target.post(*generate(lora_path=name, stream=True))
        await reader.readline()
        writer.transport.abort()
        unload = target.status("/unload_lora_adapter", {"lora_name": name}, key=ADMIN_KEY)
        await asyncio.gather(target.status(*generate(lora_path=name, text=MARK * 500)), unload)

    await asyncio.gather(*map(one, ("a", "b", "c")))


async def _weights(target: Target) -> None:
    """Updates of a ghost's weights to what they are, several at once, ones that do not exist, and one whose client
    leaves; a pause in the midst of them. Everybody else gets the same tokens."""
    path = "/update_weights_from_disk"
    sources = [{"model_path": source} for source in ("ghost", "ghost", "nowhere")]
    _, writer = await target.post(path, sources[0], key=ADMIN_KEY)
    await asyncio.sleep(0)
    writer.transport.abort()
    await target.status("/pause_generation", {"mode": "retract"}, key=ADMIN_KEY)
    try:
        await asyncio.gather(*(target.status(path, source, key=ADMIN_KEY) for source in sources))
    finally:
        await target.status("/continue_generation", {}, key=ADMIN_KEY)


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
    "adapters": _adapters,
    "weights": _weights,
}
