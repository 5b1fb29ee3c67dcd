"""What every benchmark shares: quiet timing, spread, peers run beside, a table for people and a file for programs.

Run a benchmark from the repository root as a module, `python -m benchmarks.cache`. Figures are the median of several
repetitions with the smallest and the largest beside it: a shared machine is noisy, and a single number hides that.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

RESULTS = Path(__file__).parent / "results"
"""Where `write_json` puts its files."""


class Spread(NamedTuple):
    """Median, smallest and largest of some repetitions."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one measured value for each repetition; at least one."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Result:
    """One line of the table: what was measured, and the same work done by a peer in the same run."""

    name: str
    spread: Spread
    unit: str
    peer: str | None = None
    peer_spread: Spread | None = None
    target: float | None = None
    """The value aimed at, in `unit`."""
    higher_is_better: bool = False

    @property
    def ratio(self) -> float | None:
        """How many times better than the peer (above 1: ahead); None without a peer."""
        if self.peer_spread is None:
            return None
        ours, theirs = self.spread.median, self.peer_spread.median
        return ours / theirs if self.higher_is_better else theirs / ours

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the target; None without one."""
        if self.target is None:
            return None
        return self.spread.median >= self.target if self.higher_is_better else self.spread.median <= self.target

    def record(self) -> dict[str, object]:
        """The line as written to the results file."""
        return {
            "name": self.name,
            "value": round(self.spread.median, 4),
            "unit": self.unit,
            "peer": self.peer,
            "peer_value": None if self.peer_spread is None else round(self.peer_spread.median, 4),
            "ratio": None if self.ratio is None else round(self.ratio, 3),
            "low": round(self.spread.low, 4),
            "high": round(self.spread.high, 4),
            "target": self.target,
        }


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection inside: what is live is set aside, so that the collector does not land in a timed part."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def seconds_of(work: Callable[[], object]) -> float:
    """Wall time of one call of `work`, seconds, with the collector off."""
    with quiet():
        start = time.perf_counter_ns()
        work()
        return (time.perf_counter_ns() - start) / 1e9


def microseconds_per_call(work: Callable[[], object], calls: int) -> float:
    """Mean wall time of one of `calls` calls of `work`, microseconds, with the collector off."""

    def loop() -> None:
        for _ in range(calls):
            work()

    return seconds_of(loop) * 1e6 / calls


def repeat(measure: Callable[[], float], repetitions: int = 7) -> Spread:
    """Spread of `repetitions` values of `measure`, after one that is thrown away to warm caches and clocks."""
    measure()
    return Spread.of([measure() for _ in range(repetitions)])


def run_peer(
    script: Path, arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None, python: str | None = None
) -> dict[str, Spread]:
    """Run a peer's adapter script in its own interpreter and read its spreads.

    The last line the script prints is a JSON object: name -> list of measured values, one for each repetition.
    Raises RuntimeError with the script's error output when it fails.
    """
    command = [python or sys.executable, str(script), *arguments]
    done = subprocess.run(command, env={**os.environ, **(environment or {})}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{script.name} exited with {done.returncode}:\n{done.stderr[-2000:]}")
    measured: dict[str, list[float]] = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: Spread.of(values) for name, values in measured.items()}


def table(title: str, results: Sequence[Result]) -> str:
    """The results as aligned text, one line each: median, range, target, and the peer beside."""
    head = ["", "median", "range", "unit", "target", "peer", "its median", "times better"]
    return aligned(title, [head, *(_cells(result) for result in results)])


def aligned(title: str, rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text in columns below a title; the first row is the head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([title, "-" * max(map(len, lines)), *lines])


def _cells(result: Result) -> list[str]:
    peer = result.peer_spread
    target = "" if result.target is None else f"{number(result.target)} {'met' if result.met else 'MISSED'}"
    return [
        result.name,
        number(result.spread.median),
        f"{number(result.spread.low)} - {number(result.spread.high)}",
        result.unit,
        target,
        result.peer or "",
        "" if peer is None else number(peer.median),
        "" if result.ratio is None else f"{result.ratio:.2f}",
    ]


def number(value: float) -> str:
    """Three significant digits, or whole with separators from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def write_json(results: Sequence[Result], file_name: str) -> Path:
    """Write the records to `benchmarks/results/<file_name>`; returns the path."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / file_name
    path.write_text(json.dumps([result.record() for result in results], indent=1) + "\n")
    return path
