"""Steps with quantised weights as they are stored, beside the same weights in bfloat16.

    python -m benchmarks.stored [MODEL]

Compiled kernels, one thread, its processor time, as other programs may keep the cores busy: the two take turns, and of
each turn counts the quickest step.
"""

from __future__ import annotations

import sys
import time

import torch

from benchmarks.harness import Result, Spread, table, write_json
from benchmarks.native import CONTEXT, PAGE_SIZE, PAGES_PER_SLOT, SLOTS, batches
from pawl.gpu.backend import ForwardInputs
from pawl.gpu.kv import KvStore
from pawl.gpu.native.backend import NativeBackend
from pawl.gpu.weights.blocks import Weights
from pawl.gpu.weights.source import ModelSource, load_blocks, load_weights, resolve_source

ROUNDS = {"decode": 6, "prefill": 3}
STEPS = {"decode": 8, "prefill": 1}
"""Of one turn."""


def made(source: ModelSource, weights: Weights) -> NativeBackend:
    """A backend with a store of its own."""
    pages = SLOTS * PAGES_PER_SLOT
    kv = KvStore(source.config, num_pages=pages, page_size=PAGE_SIZE, dtype=torch.bfloat16, device="cpu")
    return NativeBackend(source.config, weights, kv, threads=1)


def turn(backend: NativeBackend, inputs: ForwardInputs, steps: int) -> float:
    """Milliseconds of processor time, the least of some steps."""
    least = float("inf")
    for _ in range(steps):
        began = time.thread_time()
        backend.forward(inputs)
        least = min(least, time.thread_time() - began)
    return least * 1e3


def main() -> None:
    source = resolve_source(sys.argv[1] if len(sys.argv) > 1 else "smollm2")
    stored = made(source, load_blocks(source, torch.bfloat16))
    plain = made(source, load_weights(source, torch.bfloat16))
    results = []
    with torch.inference_mode():
        for name, inputs in batches().items():
            kind = name.split(",")[0]
            turns = [(turn(stored, inputs, STEPS[kind]), turn(plain, inputs, STEPS[kind])) for _ in range(ROUNDS[kind])]
            ours, theirs = zip(*turns, strict=True)
            results.append(Result(name, Spread.of(ours), "ms", "bfloat16", Spread.of(theirs)))
    print(table(f"One step of {source.name} as it is stored, {stored.target}, one thread, context {CONTEXT}", results))
    print(f"written to {write_json(results, 'bench-stored.json')}")


if __name__ == "__main__":
    main()
