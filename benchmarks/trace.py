"""What a trace costs: to make and to encode the records of a step, to write them, to read them, to judge them.

    python -m benchmarks.trace

The mix is a real run of the loop (its worker left out): requests of 64 prompt and 32 output tokens, up to 64 at once.
"""

from __future__ import annotations

import tempfile
from collections import deque
from pathlib import Path

import numpy as np

from benchmarks.harness import Result, Spread, microseconds_per_call, repeat, seconds_of, table, write_json
from benchmarks.host import Bench, prompts
from pawl.lifecycle.audit import Verdict, audit
from pawl.lifecycle.records import ENCODER, STOPPED, PageCounts, Record, Started, StepCommitted, StepPlanned
from pawl.lifecycle.states import Event
from pawl.lifecycle.trace.reader import TraceReader
from pawl.lifecycle.trace.writer import TraceWriter

ROWS = (1, 64, 256, 1024)
MAKE_GOAL_US = 5.0
READ_GOAL = 300_000.0
LIMIT = 1 << 31


class Recording(Bench):
    """A loop that keeps its records."""

    def __init__(self, rows: int) -> None:
        self.records: list[Record] = []
        super().__init__(rows)
        pages = self.loop.memory.pages
        self.records.append(
            Started(
                version="0",
                model="none",
                config={},
                num_pages=pages.total,
                page_size=pages.page_size,
                num_slots=rows,
                seed=0,
                time=0.0,
                wall=0.0,
            )
        )

    def _encode(self, record: Record) -> None:
        self.records.append(record)


def mix(num_requests: int = 1500) -> list[Record]:
    """The records of a run with `num_requests` requests."""
    bench = Recording(64)
    for prompt in prompts(num_requests, 64, 16):
        bench.submit(prompt, 32)
    while not bench.loop.idle:
        bench.step()
    bench.loop.journal.closed(STOPPED, bench.loop.counters, 0, bench.loop.memory.pages)
    return bench.records


class StepColumns:
    """The arrays of a decode step of `rows` requests, one in 16 of which takes a page."""

    def __init__(self, rows: int) -> None:
        self.column, self.ones = np.arange(rows, dtype=np.int32), np.ones(rows, np.bool_)
        self.pages = self.column[: max(1, rows // 16)]
        self.events = np.full(rows, Event.TOKEN, np.uint8)

    def records(self) -> tuple[StepPlanned, StepCommitted]:
        """Both records of the step."""
        column, ones, pages = self.column, self.ones, self.pages
        planned = StepPlanned(1, 1.5, column, column, column, column, ones, ones, pages, pages, pages)
        return planned, StepCommitted(1, 1.5, self.events, column, PageCounts(1000, 1000, 1000, 0, 0))


def encode_us(rows: int) -> Spread:
    """Microseconds to encode both records of a step."""
    planned, committed = StepColumns(rows).records()
    return repeat(lambda: microseconds_per_call(lambda: (ENCODER.encode(planned), ENCODER.encode(committed)), 2000))


def write_all(directory: Path, records: list[Record]) -> None:
    """Write `records` as one run."""
    writer = TraceWriter(directory, LIMIT)
    for record in records:
        writer.append(record)
    writer.close()


def main() -> None:
    made = repeat(lambda: microseconds_per_call(StepColumns(1024).records, 2000))
    results = [Result("make both records of a step, 1,024 rows", made, "us", target=MAKE_GOAL_US)]
    results += [Result(f"encode both records of a step, {rows} rows", encode_us(rows), "us") for rows in ROWS]
    records = mix()
    count = len(records)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        written = repeat(lambda: count / seconds_of(lambda: write_all(directory, records)), 5)
        read = repeat(lambda: count / seconds_of(lambda: deque(TraceReader(directory), maxlen=0)), 5)
        judged = repeat(lambda: count / seconds_of(lambda: audit(directory)), 3)
        if audit(directory).verdict != Verdict.PASS:
            raise AssertionError(audit(directory).text())
    results += [
        Result(f"write a mix of {count} records", written, "records/s", higher_is_better=True),
        Result("read it", read, "records/s", target=READ_GOAL, higher_is_better=True),
        Result("audit it", judged, "records/s", higher_is_better=True),
    ]
    print(table("Traces", results))
    print(f"written to {write_json(results, 'bench-trace.json')}")


if __name__ == "__main__":
    main()
