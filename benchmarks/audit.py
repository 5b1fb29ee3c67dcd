"""What an audit costs: a trace judged by every property, decided again with the looks at the whole memory that an audit
takes meanwhile, and both at once as `pawl audit` does it.

    python -m benchmarks.audit [--records 200000]

The trace is a ghost server's: requests of 64 prompt tokens, of which 48 are one of 16 beginnings, and 32 output tokens,
up to 64 at once. Judging and deciding again are counted in processor time of one core each, the command in wall time.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.harness import Result, Spread, repeat, seconds_of, table, write_json
from pawl.commands.beside import decide
from pawl.config import ServerConfig
from pawl.engine import Engine
from pawl.lifecycle.audit import Verdict, audit
from pawl.logs import configure_logs

RUNNING, AT_ONCE = 64, 500
PROMPT, BEGINNING, OUTPUT = 64, 48, 32
RECORDS_PER_REQUEST = 7
JUDGE_GOAL, DECIDE_GOAL = 300_000.0, 20_000.0


def record(folder: Path, num_requests: int) -> None:
    """Serve so many requests, and leave the trace of it in `folder`."""
    source = np.random.default_rng(1)
    beginnings = source.integers(0, 256, (16, BEGINNING))
    config = ServerConfig(
        model="ghost", trace_dir=str(folder), trace_limit_mb=1 << 14, max_running=RUNNING, max_queued=AT_ONCE
    )
    with Engine(config) as engine:
        for start in range(0, num_requests, AT_ONCE):
            count = min(AT_ONCE, num_requests - start)
            prompts = np.concatenate(
                (beginnings[source.integers(0, 16, count)], source.integers(0, 256, (count, PROMPT - BEGINNING))),
                axis=1,
            )
            engine.generate(prompts.tolist(), {"max_new_tokens": OUTPUT, "temperature": 0.0, "ignore_eos": True})


def rate(count: int, work: Callable[[], object]) -> float:
    """Of so many records, in one second of processor time."""
    began = time.process_time()
    work()
    return count / (time.process_time() - began)


def command(path: Path) -> None:
    """`pawl audit`, both halves."""
    subprocess.run([sys.executable, "-m", "pawl.cli", "audit", str(path)], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=200_000, help="about how many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    configure_logs("auto", "warning")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name)
        record(path, max(1, arguments.records // RECORDS_PER_REQUEST))
        report = audit(path)
        if report.verdict != Verdict.PASS:
            raise AssertionError(report.text())
        count, rounds = report.num_records, arguments.rounds
        judged = repeat(lambda: rate(count, lambda: audit(path)), rounds)
        decided = repeat(lambda: rate(count, lambda: decide(path, lambda share: None)), rounds)
        both = Spread.of([seconds_of(lambda: command(path)) for _ in range(rounds)])
    results = [
        Result("judged, one core", judged, "records/s", target=JUDGE_GOAL, higher_is_better=True),
        Result("decided again, one core", decided, "records/s", target=DECIDE_GOAL, higher_is_better=True),
        Result(f"`pawl audit` of {count:,} records, wall", both, "s"),
    ]
    print(table("Audit", results))
    print(f"written to {write_json(results, 'bench-audit.json')}")


if __name__ == "__main__":
    main()
