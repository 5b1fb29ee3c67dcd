"""A real server under attack, beside clients that mean well: does anybody notice?

    python -m benchmarks.attacks [--seconds 60] [--model ghost]

One process serves, with keys and a trace; one attacks with everything in `SHOTS` and `SIEGES`, from fixed seeds, on the
loopback address only, bounded in number and time; this one runs the good clients, first alone and then beside the
attacks, and reports: deaths, tracebacks and secrets in the log, what good clients got and how long they waited for it,
memory, and what the audit says of the trace. Timings on a small machine include the attackers' own need of processors.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.attack_shots import ADMIN_KEY, KEY, MARK, Target
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.audit import Verdict, audit

CLIENTS = 4
OUTPUT = 48
PROMPTS = [[101 + client, *range(110, 140 + client)] for client in range(CLIENTS)]
START_S, STOP_S, REST_S = 120.0, 60.0, 20.0
"""How long the server may take to start and to stop, and to come to rest after the attacks."""
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
    """Keys and marks of prompts that the log shows."""
    served_alone: int = 0
    served: int = 0
    errors: list[str] = field(default_factory=list)
    """Of good clients: what they got in place of their tokens."""
    p99_alone_ms: float = 0.0
    p99_ms: float = 0.0
    first_p50_ms: float = 0.0
    rss_before_mb: float = 0.0
    rss_after_mb: float = 0.0
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
def server(folder: Path, model: str) -> Iterator[tuple[subprocess.Popen[bytes], Target]]:
    """A running server, its log in `folder`/log, its trace in `folder`/trace; told to stop at the end of the block."""
    command = [sys.executable, "-m", "pawl.cli", "serve", model, "--port", "0", "--log-format", "json"]
    command += ["--api-key", KEY, "--admin-api-key", ADMIN_KEY, "--trace-dir", str(folder / "trace")]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        try:
            yield process, Target("127.0.0.1", _port(process, folder / "log"))
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
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


def soak(folder: Path, seconds: float, model: str = "ghost", seed: int = 0) -> Report:
    """Run it in `folder`: a quarter of the time undisturbed, the rest under attack."""
    report = Report(seconds, model)
    with server(folder, model) as (process, target):
        alone = asyncio.run(_good_clients(target, model, seconds / 4))
        report.rss_before_mb, _ = _memory_mb(process.pid)
        attackers = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.attack_shots", str(target.port), str(seconds * 3 / 4), str(seed)],
            stdout=subprocess.PIPE,
        )
        waits = asyncio.run(_good_clients(target, model, seconds * 3 / 4))
        report.shots = json.loads(attackers.communicate()[0] or b"{}")
        _come_to_rest(target, report)
        report.rss_after_mb, report.peak_mb = _memory_mb(process.pid)
    report.exit_status = process.returncode
    report.served_alone, report.served = alone.served, waits.served
    report.errors = alone.errors + waits.errors
    report.p99_alone_ms, report.p99_ms = alone.worst_of_100() * 1e3, waits.worst_of_100() * 1e3
    report.first_p50_ms = sorted(waits.first_s)[len(waits.first_s) // 2] * 1e3 if waits.first_s else 0.0
    log = (folder / "log").read_text()
    report.tracebacks = [line[:2000] for line in log.splitlines() if '"exception":' in line or "Traceback" in line]
    report.secrets = [secret for secret in (KEY, ADMIN_KEY, MARK) if secret in log]
    audited = audit(folder / "trace")
    report.verdict, report.audit = audited.verdict, audited.text()
    return report


def _memory_mb(pid: int) -> tuple[float, float]:
    """Resident now, and at the most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    now, peak = (int(re.search(rf"{name}:\s+(\d+)", status)[1]) for name in ("VmRSS", "VmHWM"))  # type: ignore[index]
    return now / 1024, peak / 1024


HELD = ("pawl_requests_open", "pawl_requests_running", "pawl_requests_waiting", "pawl_steps_in_flight")


def _come_to_rest(target: Target, report: Report) -> None:
    """Wait until the metrics say that nothing is held, or note what is."""
    ends_at = time.monotonic() + REST_S
    while True:
        samples = asyncio.run(_metrics(target))
        held = [name for name, value in samples.items() if value and (name in HELD or name.endswith('"owned"}'))]
        broken = [name for name, value in samples.items() if value and name.startswith("pawl_violations_total")]
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
    for name, value in facts.items():
        yield f"{name:>18}  {value:.2f}" if isinstance(value, float) else f"{name:>18}  {value}"
    for name, count in sorted(report.shots.items()):
        yield f"{count:>18}  {name}"
    yield report.audit


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve good clients under attack, on this machine.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--model", default="ghost")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="pawl-attacks-") as folder:
        print("\n".join(show(soak(Path(folder), given.seconds, given.model, given.seed))))


if __name__ == "__main__":
    main()
