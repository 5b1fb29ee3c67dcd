"""A real server under attack, beside clients that mean well: does anybody notice?

    python -m benchmarks.attacks [--seconds 60] [--rounds 4] [--model ghost] [--elsewhere] [-- flags of pawl serve]

One process serves, with keys and a trace; one attacks with everything in `SHOTS` and `SIEGES`, from fixed seeds, on the
loopback address only, bounded in number and time; this one runs the good clients, first alone and then beside the
attacks, and reports: deaths, tracebacks and secrets in the log, what good clients got and how long they waited for it,
memory at the end of each round of the same attacks, and what the audit says of the trace. On a small machine timings
include the attackers' own need of processors, though they are nice: so it also reports the processor time of either
side, and how long threads of the server waited for a processor. `--elsewhere` has a phase more, of a quarter of the
time, in which the attackers are at another server on the same machine: what clients wait then, no separation of
processes can take from them. A model keeps prefixes until its pool is full: `-- --kv-tokens 8192` has that over soon.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.attack_target import ADMIN_KEY, KEY, MARK, Target
from benchmarks.machine import resident
from pawl.commands.audit import replicas_in
from pawl.gpu.ghost.oracle import expected
from pawl.http.freed import LOOKS
from pawl.lifecycle.audit import Verdict, audit

CLIENTS = 4
OUTPUT = 48
PROMPTS = [[101 + client, *range(110, 140 + client)] for client in range(CLIENTS)]
START_S, STOP_S, REST_S = 120.0, 60.0, 20.0
"""How long the server may take to start and to stop, and to come to rest after the attacks."""
GIVING_BACK_S = 2.0 * LOOKS + 2.0
"""After which a server at rest, which looks about once a second, has given back what was freed."""
POLL_S = 0.2


@dataclass
class Waits:
    """What good clients saw in one phase; seconds."""

    served: int = 0
    errors: list[str] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)

    def worst_of_100(self) -> float:
        """The 99th percentile of the gaps between a stream's events."""
        return sorted(self.gaps_s)[int(len(self.gaps_s) * 0.99)] if self.gaps_s else 0.0


@dataclass
class Report:
    """Of one run."""

    seconds: float
    model: str
    exit_status: int | None = None
    """Of the server, after SIGTERM; 0 is an orderly end."""
    tracebacks: list[str] = field(default_factory=list)
    """Lines of the log with an exception that was not meant."""
    secrets: list[str] = field(default_factory=list)
    """Lines of the log that show a key or the mark of a prompt."""
    served_alone: int = 0
    served: int = 0
    errors: list[str] = field(default_factory=list)
    """Of good clients: what they got in place of their tokens."""
    p99_alone_ms: float = 0.0
    p99_elsewhere_ms: float = 0.0
    """Where another server is attacked; 0: not asked for."""
    p99_ms: float = 0.0
    first_p50_ms: float = 0.0
    server_cpu: float = 0.0
    attackers_cpu: float = 0.0
    """Processors that each kept busy under attack."""
    waiting_alone: float = 0.0
    waiting: float = 0.0
    """Threads of the server that waited for a processor, on average: the machine's share of what clients waited."""
    rss_mb: list[float] = field(default_factory=list)
    """Before the attacks, and after each round, which are of the same attacks."""
    peak_mb: float = 0.0
    longest_freeze_s: float = 0.0
    contained: float = 0.0
    unrest: list[str] = field(default_factory=list)
    """What the metrics say is still held when all is over, and violations."""
    shots: dict[str, int] = field(default_factory=dict)
    """Attack and status -> how often. Status 0: no reply."""
    verdict: Verdict | None = None
    audit: str = ""


@contextmanager
def server(folder: Path, model: str, *more: str) -> Iterator[tuple[subprocess.Popen[bytes], Target]]:
    """A server with flags `more`, its log in `folder`/log, its trace in `folder`/trace; stopped at the end."""
    command = [sys.executable, "-m", "pawl.cli", "serve", model, "--port", "0", "--log-format", "json"]
    command += ["--api-key", KEY, "--admin-api-key", ADMIN_KEY, "--trace-dir", str(folder / "trace"), *more]
    with (folder / "log").open("wb") as log:
        # What it is told to write to a folder without a root is there, and imports are as here.
        env = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, cwd=folder, env=env)
        with stopped(process):
            yield process, Target("127.0.0.1", port_of(process, folder / "log"))


@contextmanager
def stopped(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """It is told to stop at the end of the block."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def port_of(process: subprocess.Popen[bytes], log: Path) -> int:
    """The port that the server says it serves at."""
    ends_at = time.monotonic() + START_S
    while time.monotonic() < ends_at and process.poll() is None:
        if found := re.search(r'"url":"http://127\.0\.0\.1:(\d+)"', log.read_text()):
            return int(found[1])
        time.sleep(POLL_S)
    raise RuntimeError(f"the server did not start: {log.read_text()[-500:]}")


# ---- good clients ----


async def _events(target: Target, prompt: Sequence[int]) -> AsyncIterator[dict[str, Any]]:
    sampling = {"max_new_tokens": OUTPUT, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": prompt, "sampling_params": sampling, "stream": True}
    reader, writer = await target.post("/generate", body)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            raise RuntimeError(f"status {status!r}")
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                yield json.loads(line[5:])
            elif line == b"data: [DONE]\n":
                return
    finally:
        writer.close()


async def _good(target: Target, prompt: list[int], whole: list[int] | None, until: float, waits: Waits) -> None:
    """One request after the other; each must have exactly its tokens, which those of the first are where nobody knows
    them beforehand."""
    while time.monotonic() < until:
        before, tokens = time.monotonic(), [-1]
        first = True
        try:
            async for event in _events(target, prompt):
                now = time.monotonic()
                (waits.first_s if first else waits.gaps_s).append(now - before)
                before, first, tokens = now, False, event["output_ids"]
        except Exception as error:
            waits.errors.append(f"{type(error).__name__}: {error}"[:200])
            continue
        whole = whole or tokens
        if tokens == whole:
            waits.served += 1
        else:
            waits.errors.append(f"wrong tokens after {len(tokens)} of {OUTPUT}")


async def _good_clients(target: Target, model: str, seconds: float) -> Waits:
    waits, until = Waits(), time.monotonic() + seconds
    known = [expected(prompt, OUTPUT) if model == "ghost" else None for prompt in PROMPTS]
    await asyncio.gather(
        *(_good(target, prompt, whole, until, waits) for prompt, whole in zip(PROMPTS, known, strict=True))
    )
    return waits


# ---- the run ----


def soak(
    folder: Path,
    seconds: float,
    model: str = "ghost",
    seed: int = 0,
    rounds: int = 1,
    elsewhere: bool = False,
    flags: Sequence[str] = (),
) -> Report:
    """Run it in `folder`: a quarter of the time undisturbed, one more beside attacks on another server where
    `elsewhere` says so, the rest under attack, in `rounds` of the same attacks. `flags`: of `pawl serve`."""
    report = Report(seconds, model)
    beside, attacked, shots = Waits(), Waits(), Counter[str]()
    with server(folder, model, *flags) as (process, target):
        load = Load(process.pid)
        alone = asyncio.run(_good_clients(target, model, seconds / 4))
        _, report.waiting_alone = load.lap()
        if elsewhere:
            (folder / "other").mkdir()
            with server(folder / "other", model, *flags) as (_, other):
                _attacked(other, target, model, seconds / 4, seed, beside)
        report.rss_mb.append(resident(process.pid).now_mb)
        for _ in range(rounds):
            load.lap()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            shots += _attacked(target, target, model, seconds * 3 / 4 / rounds, seed, attacked)
            server_cpu, waiting = load.lap()
            report.server_cpu += server_cpu / rounds
            report.waiting += waiting / rounds
            used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before.ru_utime
            report.attackers_cpu += used / (seconds * 3 / 4)
            come_to_rest(target, report)
            time.sleep(GIVING_BACK_S)
            report.rss_mb.append(resident(process.pid).now_mb)
        report.peak_mb = resident(process.pid).peak_mb
    report.exit_status = process.returncode
    report.shots = dict(shots)
    report.served_alone, report.served = alone.served, attacked.served
    report.errors = alone.errors + beside.errors + attacked.errors
    report.p99_elsewhere_ms = beside.worst_of_100() * 1e3
    report.p99_alone_ms, report.p99_ms = alone.worst_of_100() * 1e3, attacked.worst_of_100() * 1e3
    report.first_p50_ms = sorted(attacked.first_s)[len(attacked.first_s) // 2] * 1e3 if attacked.first_s else 0.0
    judge(folder, report)
    return report


def judge(folder: Path, report: Report) -> None:
    """What the log of a server that has ended shows, and what the audit says of its trace."""
    log = (folder / "log").read_text()
    report.tracebacks = [line[:2000] for line in log.splitlines() if '"exception":' in line or "Traceback" in line]
    secrets = re.compile("|".join(map(re.escape, (KEY, ADMIN_KEY, MARK))))
    report.secrets = [line[:2000] for line in log.splitlines() if secrets.search(line)]
    report.verdict, report.audit = judged(folder / "trace")


def judged(traces: Path) -> tuple[Verdict, str]:
    """The gravest verdict about the traces of all replicas, and what the audits say."""
    reports = [audit(trace) for trace in replicas_in(traces)]
    gravest = next((each for each in reports if each.verdict is not Verdict.PASS), reports[0])
    return gravest.verdict, "\n".join(each.text() for each in reports)


def _attacked(victim: Target, target: Target, model: str, seconds: float, seed: int, waits: Waits) -> Counter[str]:
    """One round: how often each attack on `victim` had which end. `waits` of good clients of `target` are added to."""
    command = ["nice", sys.executable, "-m", "benchmarks.attack_shots", str(victim.port), str(seconds), str(seed)]
    attackers = subprocess.Popen(command, stdout=subprocess.PIPE)
    seen = asyncio.run(_good_clients(target, model, seconds))
    waits.served += seen.served
    waits.errors += seen.errors
    waits.first_s += seen.first_s
    waits.gaps_s += seen.gaps_s
    return Counter(json.loads(attackers.communicate()[0] or b"{}"))


class Load:
    """What a process does with the processors, as Linux counts it."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._last = self._counts()

    def _counts(self) -> tuple[float, float, float]:
        """Clock, seconds that threads ran, and seconds that they waited for a processor."""
        lines = [path.read_text().split() for path in self._tasks.glob("*/schedstat")]
        ran, waited = (sum(int(line[index]) for line in lines) * 1e-9 for index in range(2))
        return time.monotonic(), ran, waited

    def lap(self) -> tuple[float, float]:
        """Processors that it kept busy since the last call, and threads that waited for one, on average."""
        last, self._last = self._last, self._counts()
        seconds, ran, waited = (now - before for now, before in zip(self._last, last, strict=True))
        return max(ran, 0.0) / seconds, max(waited, 0.0) / seconds


HELD = ("pawl_requests_open", "pawl_requests_running", "pawl_requests_waiting", "pawl_steps_in_flight")


def come_to_rest(target: Target, report: Report, *, violations: bool = True) -> None:
    """Wait until the metrics say that nothing is held, and no property was violated, or note what is; without
    `violations`, only what is held."""
    ends_at = time.monotonic() + REST_S
    while True:
        samples = asyncio.run(_metrics(target))
        held = [name for name, value in samples.items() if value and (name in HELD or name.endswith('"owned"}'))]
        told = [name for name, value in samples.items() if value and name.startswith("pawl_violations_total")]
        broken = told if violations else []
        lost = [name for name, value in samples.items() if not value and name.startswith("pawl_actor_alive")]
        report.unrest = held + broken + lost + ([] if samples else ["no metrics"])
        if not report.unrest or time.monotonic() > ends_at:
            break
        time.sleep(POLL_S)
    report.longest_freeze_s = samples.get("pawl_longest_freeze_seconds", 0.0)
    report.contained = sum(value for name, value in samples.items() if name.startswith("pawl_contained"))


async def _metrics(target: Target) -> dict[str, float]:
    with contextlib.suppress(OSError, asyncio.TimeoutError):
        reader, writer = await target.send(target.head("GET", "/metrics", 0, "Connection: close\r\n"))
        text = (await asyncio.wait_for(reader.read(), REST_S)).decode()
        writer.close()
        lines = [line.rpartition(" ") for line in text.splitlines() if line.startswith(("pawl_", "gen_ai_"))]
        return {name: float(value) for name, _, value in lines}
    return {}


def show(report: Report) -> Iterator[str]:
    """Lines for people."""
    ratio = report.p99_ms / report.p99_alone_ms if report.p99_alone_ms else float("nan")
    facts = asdict(report) | {"verdict": "" if report.verdict is None else report.verdict.name, "p99_ratio": ratio}
    for name in ("shots", "audit"):
        facts.pop(name)
    facts["rss_mb"] = " ".join(f"{value:.0f}" for value in report.rss_mb)
    for name, value in facts.items():
        yield f"{name:>18}  {value:.2f}" if isinstance(value, float) else f"{name:>18}  {value}"
    for name, count in sorted(report.shots.items()):
        yield f"{count:>18}  {name}"
    yield report.audit


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve good clients under attack, on this machine.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--model", default="ghost")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--elsewhere", action="store_true", help="first attack another server on this machine")
    parser.add_argument("flags", nargs="*", help="of pawl serve, after --")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pawl-attacks-") as folder:
        print("\n".join(show(soak(Path(folder), **vars(given)))))


if __name__ == "__main__":
    main()
