"""A live server and inputs that nobody means: bodies of every route, heads, methods and paths, most of them damaged.

    python -m benchmarks.fuzz [--inputs 10000] [--seed 0] [--workers 8]

The server is a ghost in a process of its own, with keys and a trace. Bodies are drawn from its own description, and
most of them changed where it hurts. Seen to: no 500, no death, no traceback and no secret in the log, nothing held at
rest, and the audit of the trace. Each input follows from the seed and its number, so that one that fails can be sent
again: `--first N --inputs 1`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.attack_shots import BIG, LEAVES
from benchmarks.attack_target import ADMIN_KEY, KEY, MARK, Target
from benchmarks.attacks import Report, come_to_rest, judge, server
from pawl.lifecycle.audit import Verdict

PATIENCE_S = 120.0
"""The first profile alone loads seconds of Python, on a loaded machine many."""
CONTEXT = 256
"""Tokens of the server, so that an answer without a limit is short."""
DEEPEST = 5
RESTORE = (
    ("/continue_generation", {}),
    ("/resume_memory_occupation", {}),
    ("/slow_down", {"forward_sleep_time": None}),
    ("/stop_profile", {}),
    ("/flush_cache", {}),
)
"""What undoes what an input with the admin key may have ordered, so that the next ones are answered."""
RESTORE_S, RESTORE_WITHIN_S = 0.5, 5.0
"""How often, and how long each of them is waited for."""
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
"""What asks a half-closed client whether it is still there."""
HEADERS = (
    *("Transfer-Encoding: chunked", "Content-Encoding: gzip", "Content-Encoding: br", "Expect: 100-continue"),
    *("Content-Type: text/plain", "Content-Type: application/json; charset=utf-16", "Host: evil.example", "Host:"),
    *("Content-Length: 5", "Content-Length: -1", "Content-Length: 99999999999999999999", "Connection: upgrade"),
    *("Origin: https://evil.example", "Authorization: Basic x", "Authorization:", "X-Data-Parallel-Rank: -1"),
    *("X-Request-Id: " + "\xff" * 40, "Range: bytes=0-", "Accept-Encoding: *", "Cookie: " + "a" * 5000, ": empty"),
)
ENDS = ("", "/", "?a=1&a=2", "?stream=x", "%00", "/../health", "//", "?" + "a" * 4000)
"""Of a path."""
METHODS = ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "get", "X" * 300, "")

Json = Any


# ---- bodies, from the description ----


class Bodies:
    """Draws what a route's body may be."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._schemas: Mapping[str, Any] = description["components"]["schemas"]
        self.routes: list[tuple[str, Mapping[str, Any]]] = []
        """Path and schema of every route that takes a body."""
        self.paths = sorted(description["paths"])
        for path, methods in sorted(description["paths"].items()):
            content = methods.get("post", {}).get("requestBody", {}).get("content", {})
            if "application/json" in content:
                self.routes.append((path, content["application/json"]["schema"]))

    def names_of(self, schema: Mapping[str, Any]) -> frozenset[str]:
        """Fields that a body may have."""
        return frozenset(self._schemas[schema["$ref"].rpartition("/")[2]]["properties"] if "$ref" in schema else ())

    def draw(self, schema: Mapping[str, Any], source: random.Random, depth: int = 0) -> Json:
        """Something that the schema lets through, mostly."""
        if "$ref" in schema:
            return self.draw(self._schemas[schema["$ref"].rpartition("/")[2]], source, depth)
        if "anyOf" in schema:
            return self.draw(source.choice(schema["anyOf"]), source, depth)
        if "enum" in schema:
            return source.choice(schema["enum"])
        match schema.get("type"):
            case "object":
                return self._object(schema, source, depth)
            case "array":
                items = schema.get("items", {})
                return [self.draw(items, source, depth + 1) for _ in range(source.choice((1, 1, 2, 3)))]
            case "string":
                return source.choice(("x", "hello", MARK, "ghost", "user", "text"))
            case "integer":
                low, high = schema.get("minimum", 0), min(schema.get("maximum", 8), 64)
                return source.randint(low, max(low, high))
            case "number":
                return source.choice((0, 0.5, 1, 1.5))
            case "boolean":
                return source.random() < 0.5
            case "null":
                return None
        return source.choice(LEAVES)

    def _object(self, schema: Mapping[str, Any], source: random.Random, depth: int) -> Json:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        optional = sorted(set(properties) - set(required))
        names = [*required, *source.sample(optional, min(len(optional), source.choice((0, 0, 1, 2, 4))))]
        if depth > DEEPEST:
            names = list(required)
        body = {name: self.draw(properties.get(name, {}), source, depth + 1) for name in names}
        return body or {source.choice(("a", MARK)): source.choice(LEAVES)}


PROMPTED = frozenset(
    (
        *("/generate", "/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/encode"),
        *("/tokenize", "/v1/tokenize", "/v1/score", "/score"),
    )
)
"""Routes that prompts come on. What others are sent is an order, and the log may say what was ordered, as it may say
the name of a request."""
PROMPTS: Sequence[Mapping[str, Any]] = (
    {"text": "hello"},
    {"prompt": "hello"},
    {"input": "hello"},
    {"messages": [{"role": "user", "content": "hello"}]},
    {"input_ids": [101, 102]},
    {"tokens": [101]},
    {"prompt": "hello", "max_tokens": 3},
)
"""What makes a body that was drawn one that is computed, more often than chance would."""


def changed(value: Json, source: random.Random, inside: float = 0.8) -> Json:
    """The same with something in one place of it that does not belong there; with the probability `inside` not in place
    of the whole."""
    if isinstance(value, dict) and value and source.random() < inside:
        name = source.choice(sorted(value))
        match source.randrange(6):
            case 0:
                return {**value, f"{name}{source.choice(('', '_', MARK))}": source.choice(LEAVES)}
            case 1:
                return {other: inner for other, inner in value.items() if other != name}
        return {**value, name: changed(value[name], source)}
    if isinstance(value, list) and value and source.random() < 0.8:
        at = source.randrange(len(value))
        return [*value[:at], changed(value[at], source), *value[at + 1 :], *value[: source.choice((0, 0, 0, 1))]]
    return source.choice((*LEAVES, *BIG, value, [value] * 3, {"a": value}, str(value), -1e-9, "\ud7ff", "a" * 3000))


def damaged(data: bytes, source: random.Random) -> bytes:
    """The same bytes but for a few."""
    at = source.randrange(len(data) + 1)
    match source.randrange(5):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + source.randbytes(source.choice((1, 2, 8))) + data[at:]
        case 2:
            return data[:at] + data[at + source.choice((1, 2, 16)) :]
        case 3:
            return data[:at] + data[max(0, at - 20) :]
    flipped = bytearray(data)
    for _ in range(source.choice((1, 1, 4))):
        flipped[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return bytes(flipped)


# ---- whole inputs ----


def _body(bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path, schema = source.choice(bodies.routes)
    body = bodies.draw(schema, source)
    if isinstance(body, dict):
        known = bodies.names_of(schema)
        fitting = [prompt for prompt in PROMPTS if known.issuperset(prompt)]
        body |= source.choice(fitting) if fitting else {}
    for _ in range(source.choice((0, 0, 1, 2, 3))):
        body = changed(body, source, 0.98)
    data = json.dumps(body).replace(f'"rid": "{MARK}"', '"rid": "x"')
    return path, (data if path in PROMPTED else data.replace(MARK, "x")).encode()


def _with_body(target: Target, bodies: Bodies, source: random.Random) -> bytes:
    path, data = _body(bodies, source)
    return _request(target, path, data, source)


def _with_damaged_body(target: Target, bodies: Bodies, source: random.Random) -> bytes:
    path, data = _body(bodies, source)
    return _request(target, path, damaged(data, source), source)


def _with_damaged_head(target: Target, bodies: Bodies, source: random.Random) -> bytes:
    path, data = _body(bodies, source)
    more = "".join(f"{source.choice(HEADERS)}\r\n" for _ in range(source.randrange(3)))
    head = target.head("POST", path, len(data), more)
    return (damaged(head, source) if source.random() < 0.7 else head) + data


def _with_odd_line(target: Target, bodies: Bodies, source: random.Random) -> bytes:
    path = source.choice(bodies.paths) + source.choice(ENDS)
    return target.head(source.choice(METHODS), path.replace("{", "").replace("}", ""), 0)


def _request(target: Target, path: str, data: bytes, source: random.Random) -> bytes:
    key = ADMIN_KEY if source.random() < 0.9 else KEY
    return target.head("POST", path, len(data), "Connection: close\r\n", key) + data


KINDS: Mapping[str, tuple[int, Callable[[Target, Bodies, random.Random], bytes]]] = {
    "body": (6, _with_body),
    "damaged body": (2, _with_damaged_body),
    "damaged head": (2, _with_damaged_head),
    "odd line": (1, _with_odd_line),
}
"""Kind -> share, and what makes one."""


def input_of(seed: int, number: int, target: Target, bodies: Bodies) -> tuple[str, bytes]:
    """Kind and bytes of one input."""
    source = random.Random(f"{seed}/{number}")
    kind = source.choices(sorted(KINDS), [KINDS[name][0] for name in sorted(KINDS)])[0]
    return kind, KINDS[kind][1](target, bodies, source)


# ---- the run ----


@dataclass
class Seen:
    """What became of the inputs."""

    ends: Counter[str] = field(default_factory=Counter)
    """Kind and status -> how many. Status 0: hung up without a reply."""
    failed: list[str] = field(default_factory=list)
    """Inputs with a 500 or no end, each with its number, and what came back."""


async def _send(target: Target, data: bytes) -> tuple[int, bytes]:
    """Status and reply. The sender says that nothing more is to come, so a request that was cut ends, too."""
    reader, writer = await target.send(data)
    try:
        writer.write_eof()
        reply = (await reader.read()).replace(INTERIM, b"")
    except ConnectionError:
        return 0, b""
    finally:
        writer.close()
    line = reply.split(b"\r\n", 1)[0].split()
    return (int(line[1]), reply) if len(line) > 1 and line[1].isdigit() else (0, reply)


async def _worker(target: Target, bodies: Bodies, seed: int, numbers: Sequence[int], seen: Seen) -> None:
    for number in numbers:
        kind, data = input_of(seed, number, target, bodies)
        status, reply = -1, b""
        try:
            async with asyncio.timeout(PATIENCE_S):
                status, reply = await _send(target, data)
        except (TimeoutError, OSError) as error:
            reply = repr(error).encode()
        seen.ends[f"{kind}: {status}"] += 1
        if status in (500, -1):
            seen.failed.append(f"{number}: {data[:400]!r} -> {reply[-300:]!r}")


async def _all(target: Target, seed: int, first: int, inputs: int, workers: int) -> Seen:
    reader, writer = await target.send(target.head("GET", "/openapi.json", 0, "Connection: close\r\n"))
    bodies = Bodies(json.loads((await reader.read()).partition(b"\r\n\r\n")[2]))
    writer.close()
    seen = Seen()
    numbers = range(first, first + inputs)
    restoring = asyncio.create_task(_restore(target))
    await asyncio.gather(*(_worker(target, bodies, seed, numbers[n::workers], seen) for n in range(workers)))
    restoring.cancel()
    await _restore_once(target)
    return seen


async def _restore(target: Target) -> None:
    while True:
        await _restore_once(target)
        await asyncio.sleep(RESTORE_S)


async def _restore_once(target: Target) -> None:
    for path, body in RESTORE:
        with contextlib.suppress(OSError, ValueError):
            async with asyncio.timeout(RESTORE_WITHIN_S):
                await target.status(path, body, key=ADMIN_KEY)


def fuzz(folder: Path, seed: int, first: int, inputs: int, workers: int) -> tuple[Seen, Report]:
    """Send them, in `folder`."""
    report = Report(0.0, "ghost")
    flags = ("--context-length", str(CONTEXT), "--profile-dir", str(folder / "profiles"))
    with server(folder, "ghost", *flags) as (process, target):
        seen = asyncio.run(_all(target, seed, first, inputs, workers))
        come_to_rest(target, report)
    report.exit_status = process.returncode
    judge(folder, report)
    return seen, report


def main() -> None:
    parser = argparse.ArgumentParser(description="Damaged inputs for a live server, on this machine.")
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=8)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pawl-fuzz-") as folder:
        seen, report = fuzz(Path(folder), given.seed, given.first, given.inputs, given.workers)
    for kind, count in sorted(seen.ends.items()):
        print(f"{count:>8}  {kind}")
    for failed in seen.failed[:50]:
        print(failed)
    fine = report.verdict is Verdict.PASS and not (report.tracebacks or report.secrets or report.unrest)
    print(f"{given.inputs} inputs, {len(seen.failed)} failed; exit {report.exit_status};")
    print(f"tracebacks {report.tracebacks[:5]};")
    print(f"secrets {report.secrets[:5]}; held {report.unrest}; contained {report.contained}; {report.audit}")
    raise SystemExit(0 if fine and not seen.failed and report.exit_status == 0 else 1)


if __name__ == "__main__":
    main()
