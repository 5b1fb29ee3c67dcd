"""Whole steps of an 8B model with random weights: decode, prefill, deterministic mode, and the host beside them."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.gpu_limits import (
    LLAMA_8B,
    decode_bytes,
    idle_share,
    prefill_operations,
    share_of_limit,
)
from benchmarks.gpu_timing import DEVICE, clock, random_weights
from benchmarks.harness import Result, Spread, quiet
from pawl.gpu.launched import Launched
from pawl.gpu.runner import Runner
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import SlotAssignment, StepBatch

PAGE = 16
CONTEXT = 1024
PROMPT = 8192
MOST_ROWS = 256
STEPS = 40
GREEDY = SamplingParameters(temperature=0.0)
NOTHING = np.zeros(0, np.int32)


def make_runner(deterministic: bool) -> Runner:
    """The model with room for 256 requests of 1,064 tokens, and graphs for the steps that are run."""
    runner = Runner(
        LLAMA_8B,
        random_weights(LLAMA_8B),
        num_pages=MOST_ROWS * -(-(CONTEXT + STEPS) // PAGE),
        page_size=PAGE,
        num_slots=MOST_ROWS,
        max_context=PROMPT + PAGE,
        device=DEVICE,
        backend="triton",
        deterministic=deterministic,
    )
    for shape in runner.prepare_graphs():
        if shape.rows in (1, 64, MOST_ROWS):
            runner.record_graph(shape)
    return runner


@dataclass
class Steps:
    """Batches for a runner, numbered on. Slots own their pages from the beginning, in no order."""

    runner: Runner
    step: int = 0

    def admit(self, rows: int, tokens: int) -> StepBatch:
        """`rows` requests with all their pages, of which nothing is computed: what the pages hold does not matter."""
        per_slot = min(-(-tokens // PAGE), self.runner.page_table.shape[1])
        pages = np.random.default_rng(0).permutation(self.runner.kv.num_pages)[: rows * per_slot]
        return self._batch(
            NOTHING,
            NOTHING,
            NOTHING,
            page_slots=np.repeat(np.arange(rows, dtype=np.int32), per_slot),
            page_indices=np.tile(np.arange(per_slot, dtype=np.int32), rows),
            pages=pages.astype(np.int32),
            admitted=tuple(SlotAssignment(slot, GREEDY, 0, NOTHING, 0) for slot in range(rows)),
        )

    def decode(self, rows: int, position: int) -> StepBatch:
        """One token of each of `rows` requests, at `position`; inputs are what was drawn last."""
        return self._batch(np.full(rows, position, np.int32), np.ones(rows, np.int32), NOTHING)

    def prefill(self, tokens: int) -> StepBatch:
        """One prompt."""
        prompt = np.random.default_rng(1).integers(0, LLAMA_8B.vocab_size, tokens).astype(np.int32)
        return self._batch(np.zeros(1, np.int32), np.array([tokens], np.int32), prompt)

    def _batch(
        self,
        starts: np.ndarray[tuple[int], np.dtype[np.int32]],
        lengths: np.ndarray[tuple[int], np.dtype[np.int32]],
        tokens: np.ndarray[tuple[int], np.dtype[np.int32]],
        **placed: object,
    ) -> StepBatch:
        self.step += 1
        rows = len(starts)
        nowhere: dict[str, object] = {"page_slots": NOTHING, "page_indices": NOTHING, "pages": NOTHING}
        return StepBatch(
            step=self.step,
            slots=np.arange(rows, dtype=np.int32),
            starts=starts,
            lengths=lengths,
            tokens=tokens,
            chained=np.full(rows, not len(tokens), np.bool_),
            samples=np.ones(rows, np.bool_),
            **(nowhere | placed),  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Run:
    """Consecutive steps, each launched before the one before is collected."""

    step_ms: list[float]
    """On the device."""
    gap_ms: list[float]
    """On the device, between one step and the next."""
    launch_ms: list[float]
    """On the host."""


def overlapped(runner: Runner, batches: list[StepBatch]) -> Run:
    """Run the batches as a server does with overlap."""
    begins, ends, hosts = [], [], []
    waiting: list[Launched] = []
    with quiet():
        for batch in batches:
            begin, end = clock(), clock()
            started = time.perf_counter()
            begin.record()
            waiting.append(runner.launch(batch))
            end.record()
            hosts.append((time.perf_counter() - started) * 1e3)
            begins.append(begin)
            ends.append(end)
            if len(waiting) == 2:
                runner.collect(waiting.pop(0))
        runner.collect(waiting.pop())
    torch.cuda.synchronize()
    return Run(
        step_ms=[begin.elapsed_time(end) for begin, end in zip(begins, ends, strict=True)],
        gap_ms=[end.elapsed_time(begin) for end, begin in zip(ends, begins[1:], strict=False)],
        launch_ms=hosts,
    )


def decode_run(runner: Runner, rows: int) -> Run:
    """Steps of `rows` requests around `CONTEXT` tokens, the first ones left out."""
    runner.reset()
    steps = Steps(runner)
    runner.collect(runner.launch(steps.admit(rows, CONTEXT + STEPS)))
    run = overlapped(runner, [steps.decode(rows, CONTEXT + index) for index in range(STEPS)])
    return Run(run.step_ms[8:], run.gap_ms[8:], run.launch_ms[8:])


def prefill_run(runner: Runner) -> Run:
    """Prompts of `PROMPT` tokens, one after the other."""
    runner.reset()
    steps = Steps(runner)
    runner.collect(runner.launch(steps.admit(1, PROMPT)))
    run = overlapped(runner, [steps.prefill(PROMPT) for _ in range(6)])
    return Run(run.step_ms[1:], run.gap_ms[1:], run.launch_ms[1:])


def shares(least_s: float, times_ms: list[float]) -> Spread:
    """Percent of the limit, for each of some measured times."""
    return Spread.of([share_of_limit(least_s, time / 1e3) for time in times_ms])


def step_results(bandwidth: float, rate: float) -> list[Result]:
    """Every figure about whole steps, fast mode and deterministic mode beside it."""
    runner = make_runner(deterministic=False)
    decode = {rows: decode_run(runner, rows) for rows in (1, 64, MOST_ROWS)}
    prefill = prefill_run(runner)
    del runner
    gc.collect()
    torch.cuda.empty_cache()
    runner = make_runner(deterministic=True)
    fixed_decode, fixed_prefill = decode_run(runner, 64), prefill_run(runner)
    results = [
        Result(
            f"decode, {rows} rows at {CONTEXT}",
            shares(decode_bytes(LLAMA_8B, rows, CONTEXT) / bandwidth, decode[rows].step_ms),
            "% of limit",
            target=85.0 if rows <= 64 else None,
            higher_is_better=True,
        )
        for rows in decode
    ]
    largest = decode[MOST_ROWS]
    return [
        *results,
        Result(
            f"prefill, {PROMPT} tokens",
            shares(prefill_operations(LLAMA_8B, PROMPT) / rate, prefill.step_ms),
            "% of limit",
            target=65.0,
            higher_is_better=True,
        ),
        Result(f"device idle, {MOST_ROWS} rows", one(idle_share(largest.gap_ms, largest.step_ms)), "%", target=1.0),
        Result(f"host time of a launch, {MOST_ROWS} rows", Spread.of(largest.launch_ms), "ms",
               target=float(np.median(largest.step_ms))),
        slower("deterministic decode, 64 rows", fixed_decode, decode[64]),
        slower(f"deterministic prefill, {PROMPT} tokens", fixed_prefill, prefill),
    ]  # fmt: skip


def one(value: float) -> Spread:
    """A figure that was measured once."""
    return Spread(value, value, value)


def slower(name: str, fixed: Run, fast: Run) -> Result:
    """How much longer a step takes in deterministic mode."""
    base = float(np.median(fast.step_ms))
    return Result(name, Spread.of([100.0 * (time / base - 1.0) for time in fixed.step_ms]), "% slower", target=10.0)
