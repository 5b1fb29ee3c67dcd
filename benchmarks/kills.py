"""Streaming clients while what computes for them is killed: does any of them notice?

    python -m benchmarks.kills [--seconds 120] [--clients 200] [--every 5] [--dp 4] [--model ghost]

The front and half of the replicas live here, the others on a second host (a network namespace). Every few seconds
`kill -9` hits a replica of either host, or the agent of the second one, which is then started again. Each client asks
one thing after the other, and each stream must be what an undisturbed one is. Reported are streams that are whole, and
others; kills; resident memory of the front; how front and agent end on SIGTERM; and the verdict of each trace.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import resident, tree
from benchmarks.second_host import ROOT, SecondHost, second_host
from pawl.actors.runtime.processes.keys import make_keys
from pawl.bench.client import Client
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.audit import Verdict, audit

OUTPUT = 128
PROMPTS = [[101 + number % 20, *range(110, 118 + number)] for number in range(32)]
START_S, STOP_S, LOOK_S = 120.0, 60.0, 0.2
REST_S = 15.0
"""At the end nobody is killed, so that all are there when they are told to end."""
REPLICA = b"pawl.build.replica"


@dataclass
class Report:
    """Of one run."""

    whole: int = 0
    errors: list[str] = field(default_factory=list)
    """What clients got in place of what an undisturbed stream is."""
    longest_s: float = 0.0
    """Of a stream."""
    kills: Counter[str] = field(default_factory=Counter)
    rss_mb: list[float] = field(default_factory=list)
    """Of the front, before each kill."""
    exits: dict[str, int | None] = field(default_factory=dict)
    verdicts: Counter[str] = field(default_factory=Counter)
    """Of traces. That of a replica that was killed has no end."""
    violations: list[str] = field(default_factory=list)


class Deployment:
    """A head here, and one node on the second host."""

    def __init__(self, host: SecondHost, folder: Path, model: str, dp: int) -> None:
        self._host, self._folder = host, folder
        keys, join = folder / "keys", f"tcp://{host.head}:{7000 + os.getpid() % 1000}"
        make_keys(keys)
        self._node_words = ("node", "--join", join, "--keys", str(keys))
        words = ["serve", model, "--port", "0", "--log-format", "json", "--dp", str(dp), "--nodes", "2"]
        words += ["--listen", join, "--keys", str(keys), "--trace-dir", str(folder / "traces"), "--seed", "7"]
        words += ["--max-running", "512", "--kv-tokens", "262144", "--trace-limit-mb", "4096"]
        self._log = (folder / "log").open("wb")
        self.head = subprocess.Popen([sys.executable, "-m", "pawl.cli", *words], cwd=ROOT, stderr=self._log)
        self.node = self._start_node()

    def _start_node(self) -> subprocess.Popen[bytes]:
        return self._host.start(*self._node_words, stderr=self._log)

    def url(self) -> str:
        """Once it serves."""
        until = time.monotonic() + START_S
        while time.monotonic() < until and self.head.poll() is None:
            if found := re.search(r'"url":"([^"]+)"', (self._folder / "log").read_text()):
                return found[1]
            time.sleep(LOOK_S)
        raise RuntimeError(f"it did not start: {(self._folder / 'log').read_text()[-2000:]}")

    def kill(self, draw: random.Random) -> str:
        """One of them; what it was."""
        replicas = {pid: place for place, root in (("here", self.head), ("there", self.node)) for pid in tree(root.pid)}
        found = [(pid, f"replica {place}") for pid, place in replicas.items() if REPLICA in _command(pid)]
        pid, what = draw.choice([*found, (self.node.pid, "agent")])
        os.kill(pid, signal.SIGKILL)
        if what == "agent":
            self.node.wait()
            self.node = self._start_node()
        return what

    def rss_mb(self) -> float:
        """Of the front."""
        return resident(self.head.pid).now_mb

    def end(self) -> dict[str, int | None]:
        """How both have ended, once the head was told to."""
        self.head.send_signal(signal.SIGTERM)
        exits: dict[str, int | None] = {}
        for name, process in (("front", self.head), ("agent", self.node)):
            try:
                exits[name] = process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                exits[name] = None
        self._log.close()
        return exits


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def _client(url: str, number: int, known: dict[int, list[int]], until: float, report: Report) -> None:
    async with Client(url, {"content-type": "application/json"}) as client:
        while time.monotonic() < until:
            at, began = number % len(PROMPTS), time.monotonic()
            sampling = {"max_new_tokens": OUTPUT, "temperature": 0, "ignore_eos": True}
            body = {"input_ids": PROMPTS[at], "sampling_params": sampling, "stream": True}
            last = b""
            try:
                async for line in client.lines("POST", "/generate", json.dumps(body).encode()):
                    last = line if line.startswith(b"data: {") else last
                tokens = json.loads(last[5:])["output_ids"]
            except Exception as error:
                report.errors.append(f"{type(error).__name__}: {error} {last[-200:]!r}"[:400])
                continue
            if tokens == known.setdefault(at, tokens):
                report.whole += 1
            else:
                report.errors.append(f"other tokens: {len(tokens)} of {OUTPUT}")
            report.longest_s = max(report.longest_s, time.monotonic() - began)
            number += 7


async def _killer(deployment: Deployment, every_s: float, until: float, draw: random.Random, report: Report) -> None:
    while time.monotonic() + every_s + REST_S < until:
        await asyncio.sleep(every_s)
        report.rss_mb.append(deployment.rss_mb())
        report.kills[await asyncio.to_thread(deployment.kill, draw)] += 1


async def _run(deployment: Deployment, url: str, given: argparse.Namespace, report: Report) -> None:
    known = {at: expected(prompt, OUTPUT) for at, prompt in enumerate(PROMPTS)} if given.model == "ghost" else {}
    if not known:  # each thing is asked once while nobody is killed
        await asyncio.gather(*(_client(url, at, known, time.monotonic() + 0.1, report) for at in range(len(PROMPTS))))
    until = time.monotonic() + given.seconds
    clients = [_client(url, number, known, until, report) for number in range(given.clients)]
    await asyncio.gather(_killer(deployment, given.every, until, random.Random(given.seed), report), *clients)


def run(folder: Path, host: SecondHost, given: argparse.Namespace) -> Report:
    """One run in `folder`."""
    report = Report()
    deployment = Deployment(host, folder, given.model, given.dp)
    try:
        asyncio.run(_run(deployment, deployment.url(), given, report))
        report.rss_mb.append(deployment.rss_mb())
    finally:
        report.exits = deployment.end()
    for trace in sorted((folder / "traces").glob("replica-*/run-*")):
        found = audit(trace)
        report.verdicts[found.verdict.name] += 1
        if found.verdict not in (Verdict.PASS, Verdict.INCOMPLETE):
            report.violations.append(f"{trace}: {found.text()}"[:2000])
    return report


def show(report: Report) -> Iterator[str]:
    """Lines for people."""
    others = len(report.errors)
    yield f"streams as they are undisturbed: {report.whole}; others: {others}; longest {report.longest_s:.1f} s"
    yield f"kills: {dict(report.kills)}"
    yield f"resident memory of the front, MiB: {' '.join(f'{value:.0f}' for value in report.rss_mb)}"
    yield f"exit status: {report.exits}; traces: {dict(report.verdicts)}"
    yield from report.errors[:10]
    yield from report.violations


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description="Kill what computes for streaming clients, on this machine.")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--dp", type=int, default=4)
    parser.add_argument("--model", default="ghost")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(words)


def main() -> None:
    given = arguments()
    with tempfile.TemporaryDirectory(prefix="pawl-kills-") as folder, second_host() as host:
        print("\n".join(show(run(Path(folder), host, given))))


if __name__ == "__main__":
    main()
