"""How fast schedules are explored: `pawl explore` as a user types it, but for a number of schedules and a seed.

    python -m benchmarks.exploration [CHECKOUT ...] [--schedules 400] [--rounds 3] [--workers 2]

Of several checkouts in turns, in one run. A delivery is one message handed to one actor, every property judging;
replays, second runs and the making of engines are in the time. Processor time is that of all workers together: beside
other programs only that can be compared. Where checkouts draw alike they run the same schedules, and that is said.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness import Result, Spread, table, write_json
from benchmarks.machine import num_processors

HERE = Path(__file__).parents[1]
GOAL = 25_000.0
"""Deliveries a second on two cores."""


class Exploration(NamedTuple):
    """One run of the command."""

    schedules: int
    deliveries: int
    wall_s: float
    cpu_s: float


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[HERE])
    parser.add_argument("--schedules", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=num_processors())
    asked = parser.parse_args()
    found: dict[Path, list[Exploration]] = {checkout: [] for checkout in asked.checkouts}
    for _ in range(asked.rounds):
        for checkout, runs in found.items():
            runs.append(explored(checkout, asked.schedules, asked.seed, asked.workers))
    results = [line for checkout, runs in found.items() for line in lines(checkout, runs)]
    print(table(f"Exploration, {asked.workers} workers", results))
    drawn = {(run.schedules, run.deliveries) for runs in found.values() for run in runs}
    print("all ran the same schedules" if len(drawn) == 1 else f"(schedules, deliveries) differ: {sorted(drawn)}")
    print(f"written to {write_json(results, 'bench-explore.json')}")


def lines(checkout: Path, runs: list[Exploration]) -> list[Result]:
    """Rates of one checkout."""
    name = "" if checkout.resolve() == HERE else f", {checkout}"
    rates = Spread.of([run.deliveries / run.wall_s for run in runs])
    costs = Spread.of([run.cpu_s / run.deliveries * 1e6 for run in runs])
    schedules = Spread.of([run.schedules / run.wall_s for run in runs])
    return [
        Result(f"deliveries{name}", rates, "1/s", target=GOAL, higher_is_better=True),
        Result(f"processor time of a delivery{name}", costs, "us"),
        Result(f"schedules{name}", schedules, "1/s", higher_is_better=True),
    ]


def explored(checkout: Path, schedules: int, seed: int, workers: int) -> Exploration:
    """Run the command in `checkout`; ends this process where it fails or finds something."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pawl.cli", "explore", "--json", "--seconds", "3600", "-o", f"{folder}/found"]
        command += ["--schedules", str(schedules), "--seed", str(seed), "--workers", str(workers)]
        before, began = _children_cpu_s(), time.monotonic()
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
        wall, cpu = time.monotonic() - began, _children_cpu_s() - before
    if done.returncode:
        sys.exit(f"pawl explore of {checkout}: status {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    said = json.loads(done.stdout)
    return Exploration(said["schedules"], said["deliveries"], wall, cpu)


def _children_cpu_s() -> float:
    """Of all processes that this one began and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
