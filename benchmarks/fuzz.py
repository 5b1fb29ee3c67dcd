"""A live server and inputs that nobody means: bodies of every route, heads, methods and paths, most of them damaged.

    python -m benchmarks.fuzz [--inputs 10000] [--seed 0] [--workers 8] [--serve "--dp 2"]

The server is a ghost in a process of its own, with keys and a trace. Bodies are drawn from its own description, and
most of them changed where it hurts, or told in words that no library writes; some clients leave in the middle of
anything. Seen to: no 500, errors of the documented form, no death, no traceback and no secret in the log, nothing held
at rest, and the audit of the trace. Each input follows from the seed and its number, so that one that fails can be sent
again: `--first N --inputs 1`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shlex
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.attack_target import ADMIN_KEY, KEY, MARK, Target
from benchmarks.attacks import Report, come_to_rest, judge, server
from benchmarks.fuzz_bodies import PROMPTED, PROMPTS, STREAMED, Bodies, changed, damaged
from benchmarks.fuzz_odd import named_elsewhere, odd_query, odd_wire
from benchmarks.fuzz_wire import Ending, chunks, ending, retold, wrong_in
from pawl.lifecycle.audit import Verdict

PATIENCE_S = 120.0
"""Of one input, on a loaded machine."""
CONTEXT = 256
"""Tokens of the server, so that an answer without a limit is short."""
LEAVES_S = 2.0
"""After which a client that wanted to read something leaves without."""
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


# ---- whole inputs ----


def _body(bodies: Bodies, source: random.Random, changes: Sequence[int] = (0, 0, 1, 2, 3)) -> tuple[str, bytes]:
    path, schema = source.choice(bodies.routes)
    body = bodies.draw(schema, source)
    if isinstance(body, dict):
        known = bodies.names_of(schema)
        fitting = [prompt for prompt in PROMPTS if known.issuperset(prompt)]
        body |= source.choice(fitting) if fitting else {}
    for _ in range(source.choice(changes)):
        body = changed(body, source, 0.98)
    data = json.dumps(body).replace(f'"rid": "{MARK}"', '"rid": "x"')
    return path, (data if path in PROMPTED else data.replace(MARK, "x")).encode()


def _with_body(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path, data = _body(bodies, source)
    return path, _request(target, path, data, source)


def _with_damaged_body(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path, data = _body(bodies, source)
    return path, _request(target, path, damaged(data, source), source)


def _with_retold_body(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path, data = _body(bodies, source, changes=(0, 0, 1))
    return path, _request(target, path, retold(data, source), source)


def _streamed(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path = source.choice(STREAMED)
    prompt = source.choice(
        [prompt for prompt in PROMPTS if bodies.names_of(dict(bodies.routes)[path]).issuperset(prompt)]
    )
    data = json.dumps({**prompt, "stream": True, **source.choice(({}, {"n": 3}, {"logprobs": True}))}).encode()
    return path, _request(target, path, data, source)


def _in_chunks(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path, data = _body(bodies, source)
    head = target.head("POST", path, 0, "Transfer-Encoding: chunked\r\nConnection: close\r\n", ADMIN_KEY)
    return path, head.replace(b"Content-Length: 0\r\n", b"") + chunks(data, source)


def _pipelined(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    several = [_body(bodies, source) for _ in range(source.choice((2, 3, 8)))]
    requests = [target.head("POST", path, len(data), "", ADMIN_KEY) + data for path, data in several]
    return several[0][0], b"".join(requests)


def _with_damaged_head(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path, data = _body(bodies, source)
    more = "".join(f"{source.choice(HEADERS)}\r\n" for _ in range(source.randrange(3)))
    head = target.head("POST", path, len(data), more)
    return path, (damaged(head, source) if source.random() < 0.7 else head) + data


def _with_odd_line(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path, method = source.choice(bodies.paths) + source.choice(ENDS), source.choice(METHODS)
    return path, target.head(method, path.replace("{", "").replace("}", ""), 0)


def _elsewhere(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path, body = named_elsewhere(source)
    return path, _request(target, path, json.dumps(body).encode(), source)


def _odd_wire(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    return "/", odd_wire(source)


def _odd_query(target: Target, bodies: Bodies, source: random.Random) -> tuple[str, bytes]:
    path = source.choice(bodies.paths).replace("{", "").replace("}", "")
    return path, odd_query(path, source)


def _request(target: Target, path: str, data: bytes, source: random.Random) -> bytes:
    key = ADMIN_KEY if source.random() < 0.9 else KEY
    return target.head("POST", path, len(data), "Connection: close\r\n", key) + data


KINDS: Mapping[str, tuple[int, Callable[[Target, Bodies, random.Random], tuple[str, bytes]]]] = {
    "body": (6, _with_body),
    "damaged body": (2, _with_damaged_body),
    "retold body": (4, _with_retold_body),
    "stream": (2, _streamed),
    "chunks": (1, _in_chunks),
    "pipeline": (1, _pipelined),
    "damaged head": (2, _with_damaged_head),
    "odd line": (1, _with_odd_line),
    "elsewhere": (2, _elsewhere),
    "odd wire": (3, _odd_wire),
    "odd query": (1, _odd_query),
    "slow body": (1, _with_body),
}
"""Kind -> share, and what makes path and bytes of one."""
NO_REQUESTS = ("odd line", "damaged head", "odd wire")
"""Kinds whose errors may have no form that a route has."""
SLOWLY = Ending(pieces=12, pause_s=0.03)
SHARE_LEAVING = {"stream": 0.9, "chunks": 0.3, "pipeline": 0.5, "body": 0.1, "odd wire": 0.3}
"""Of clients that do not wait for the end of the reply, or send oddly."""


class Input(NamedTuple):
    """What one client sends, and how it behaves."""

    kind: str
    path: str
    data: bytes
    ending: Ending


def input_of(seed: int, number: int, target: Target, bodies: Bodies) -> Input:
    """The one of this number."""
    source = random.Random(f"{seed}/{number}")
    kind = source.choices(sorted(KINDS), [KINDS[name][0] for name in sorted(KINDS)])[0]
    path, data = KINDS[kind][1](target, bodies, source)
    how = ending(source) if source.random() < SHARE_LEAVING.get(kind, 0.0) else Ending()
    return Input(kind, path, data, SLOWLY if kind == "slow body" else how)


# ---- the run ----


@dataclass
class Seen:
    """What became of the inputs."""

    ends: Counter[str] = field(default_factory=Counter)
    """Kind and status -> how many. Status 0: hung up without a reply."""
    failed: list[str] = field(default_factory=list)
    """Inputs with a 500 or no end, each with its number, and what came back."""


async def _send(target: Target, sent: Input) -> tuple[int, bytes]:
    """Status and reply; status 0 where none came, or nobody waited for it. Who sends all says mostly that nothing more
    is to come, so that a request that was cut ends, too."""
    data, how = sent.data[: round(len(sent.data) * sent.ending.sends)], sent.ending
    size = max(1, -(-len(data) // how.pieces))
    reader, writer = await target.send(data[:size])
    try:
        for at in range(size, len(data), size):
            await writer.drain()
            await asyncio.sleep(how.pause_s)
            writer.write(data[at : at + size])
        if how.half_closes or how.reads is None:
            with contextlib.suppress(OSError):  # it may have answered before all of it came, and closed
                writer.write_eof()
        if how.reads is not None:
            await asyncio.wait_for(reader.read(how.reads), LEAVES_S)
            writer.transport.abort()
            return 0, b""
        reply = (await reader.read()).replace(INTERIM, b"")
    except (ConnectionError, RuntimeError):  # of writing where the other side has gone
        return 0, b""
    except TimeoutError:
        return 0, b""
    finally:
        writer.close()
    line = reply.split(b"\r\n", 1)[0].split()
    return (int(line[1]), reply) if len(line) > 1 and line[1].isdigit() else (0, reply)


async def _worker(target: Target, bodies: Bodies, seed: int, numbers: Sequence[int], seen: Seen) -> None:
    for number in numbers:
        sent = input_of(seed, number, target, bodies)
        status, reply, wrong = -1, b"", None
        try:
            async with asyncio.timeout(PATIENCE_S * sent.data.count(b" HTTP/1.1\r\n") or PATIENCE_S):
                status, reply = await _send(target, sent)
        except (TimeoutError, OSError) as error:
            reply = repr(error).encode()
        seen.ends[f"{sent.kind}: {status}"] += 1
        if b"root:x:0" in reply:
            wrong = "a file of this machine"
        elif status > 0 and sent.kind not in NO_REQUESTS:
            wrong = wrong_in(reply, sent.path)
        if status in (500, -1) or wrong:
            seen.failed.append(f"{number}: {sent.data[:400]!r} {sent.ending} -> {wrong} {reply[-300:]!r}")


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


def fuzz(
    folder: Path, seed: int, first: int, inputs: int, workers: int, serve: Sequence[str] = ()
) -> tuple[Seen, Report]:
    """Send them, in `folder`, to a server with `serve` as further flags."""
    report = Report(0.0, "ghost")
    flags = ("--context-length", str(CONTEXT), "--profile-dir", str(folder / "profiles"))
    with server(folder, "ghost", *flags, *serve) as (process, target):
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
    parser.add_argument("--serve", default="", help="further flags of the server, in one word")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pawl-fuzz-") as folder:
        seen, report = fuzz(
            Path(folder), given.seed, given.first, given.inputs, given.workers, shlex.split(given.serve)
        )
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
