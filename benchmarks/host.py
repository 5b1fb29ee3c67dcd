"""Host time of a scheduling step with the model left out: plan, launch, commit, states, transaction, trace, checks.

    python -m benchmarks.host

The worker is replaced by a constant; trace records are made *and encoded* inside the timed part, although a server
encodes them in another thread. The prefix cache has the core that a server has: the compiled one, where it was built.
Peers, where installed, do the same work in their own interpreter in the same run.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np

from benchmarks.harness import Result, Spread, quiet, repeat, run_peer, table, write_json
from pawl.lifecycle.journal import Journal
from pawl.lifecycle.records import ENCODER, Record
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.requests import RequestInfo
from pawl.lifecycle.step import StepResult
from pawl.loops.batch import ScheduledBatch
from pawl.loops.effects import Ending
from pawl.loops.loop import Loop
from pawl.loops.select import LoopConfig, make_loop
from pawl.memory.arrays import Int32s
from pawl.memory.violation import MemoryViolation

ROWS = {1: 40.0, 64: 80.0, 256: 120.0, 1024: 250.0}
"""Running requests -> goal, microseconds a step."""
ADMISSION_GOAL_US = 50.0


class Sink:
    """Takes the loop's effects, drops them; remembers what was launched."""

    def __init__(self) -> None:
        self.plans: list[ScheduledBatch] = []

    def opened(self, row: int, info: RequestInfo, tokens: Int32s) -> None: ...

    def launch(self, scheduled: ScheduledBatch) -> None:
        self.plans.append(scheduled)

    def output(
        self, rows: Int32s, tokens: Int32s, scheduled: ScheduledBatch | None, result: StepResult | None
    ) -> None: ...

    def ended(self, ending: Ending) -> None: ...

    def violated(self, violation: MemoryViolation) -> None:
        raise violation


class Bench:
    """A loop whose worker always answers token 7."""

    def __init__(
        self, rows: int, *, pacing: str = "lockstep", trace: bool = True, chunk: int = 8192, core: str = "auto"
    ) -> None:
        self.sink = Sink()
        self.bytes = 0
        journal = Journal(self._encode if trace else None)
        config = LoopConfig(
            num_pages=90 * 1024,
            page_size=16,
            max_context=4608,
            max_running=max(rows, 1),
            max_queued=2048,
            prefill_chunk=chunk,
            pacing=pacing,
            cache_core=core,
        )
        self.loop: Loop = make_loop(config, self.sink, journal)
        self._sevens = np.full(max(rows, 1024), 7, np.int32)
        self._next = 1

    def _encode(self, record: Record) -> None:
        self.bytes += len(ENCODER.encode(record))

    def submit(self, prompt: Int32s, max_new_tokens: int) -> None:
        sampling = SamplingParameters(temperature=0.0, max_new_tokens=max_new_tokens)
        self.loop.requests.submit(
            RequestInfo(self._next, f"r{self._next}", sampling, "", 0.0), prompt, 0, float("inf"), 0.0
        )
        self._next += 1

    def step(self) -> None:
        self.loop.turn(0.0)
        scheduled = self.sink.plans.pop(0)
        self.loop.executed(StepResult(scheduled.step, self._sevens[: len(scheduled.sampled_rows)]), 0.0)

    def prefill_all(self) -> None:
        while self.loop.queues.num_waiting or self.loop.queues.prefilling:
            self.step()


def prompts(count: int, length: int, shared: int, seed: int = 0) -> list[Int32s]:
    source = random.Random(seed)
    prefix = [source.randrange(50_000) for _ in range(shared)]
    return [
        np.array(prefix + [source.randrange(50_000) for _ in range(length - shared)], np.int32) for _ in range(count)
    ]


def decode_us(rows: int, *, trace: bool = True, pacing: str = "lockstep") -> Spread:
    """Microseconds a step with `rows` decoding requests of 512 prompt tokens."""
    bench = Bench(rows, trace=trace, pacing=pacing)
    for prompt in prompts(rows, 512, 256):
        bench.submit(prompt, 4000)
    bench.prefill_all()
    assert bench.loop.queues.num_running == rows
    steps = 300 if rows <= 64 else 100

    def measure() -> float:
        with quiet():
            start = time.perf_counter_ns()
            for _ in range(steps):
                bench.step()
            return (time.perf_counter_ns() - start) / steps / 1e3

    return repeat(measure, 9)


def admission_us(core: str = "auto") -> Spread:
    """Microseconds a request: 1,000 prompts of 512 tokens, half of them shared, until all are prefilled."""
    offered = prompts(1000, 512, 256)

    def measure() -> float:
        bench = Bench(1024, core=core)
        with quiet():
            start = time.perf_counter_ns()
            for prompt in offered:
                bench.submit(prompt, 128)
            bench.prefill_all()
            return (time.perf_counter_ns() - start) / 1e3 / len(offered)

    return repeat(measure, 5)


def vllm() -> dict[str, Spread]:
    """The same figures of vLLM's scheduler, from the interpreter named by PAWL_PEER_VLLM; empty when not there."""
    python = os.environ.get("PAWL_PEER_VLLM")
    if not python or not Path(python).exists():
        print("vLLM is not installed (PAWL_PEER_VLLM names the interpreter of its environment): skipped")
        return {}
    return run_peer(Path(__file__).with_name("peers_vllm_scheduler.py"), python=python)


def main() -> None:
    peer = vllm()
    results = []
    for rows, goal in ROWS.items():
        results.append(
            Result(f"decode step, {rows} running", decode_us(rows), "us", "vLLM", peer.get(f"decode {rows}"), goal)
        )
    for rows in (1, 256):
        off = decode_us(rows, trace=False)
        results.append(Result(f"decode step, {rows} running, trace off", off, "us"))
    results.append(
        Result("admission of one of 1,000", admission_us(), "us", "vLLM", peer.get("admission"), ADMISSION_GOAL_US)
    )
    results.append(Result("admission, the cache's core in Python", admission_us("python"), "us"))
    print(table("Host path, one step (model left out)", results))
    print(f"written to {write_json(results, 'bench-host.json')}")


if __name__ == "__main__":
    main()
