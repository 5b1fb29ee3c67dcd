"""What a step of the compiled CPU kernels takes, with the torch decoder beside: SmolLM2-135M in bfloat16.

    python -m benchmarks.native [threads]

Both compute the same batches over pages in scrambled order, turn by turn in one process. The smallest figure of the
range is the one to compare on a machine that others use. Targets are for two cores at 52 GB/s.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import torch

from benchmarks.harness import Result, Spread, repeat, seconds_of, table, write_json
from pawl.gpu.backend import Backend, ForwardInputs
from pawl.gpu.devices import available_threads, upload
from pawl.gpu.kv import KvStore
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.native.backend import NativeBackend
from pawl.gpu.weights.source import load_weights, resolve_source

PAGE_SIZE = 16
CONTEXT = 256
SLOTS = 32
PAGES_PER_SLOT = 64

TARGETS_MS: dict[str, float | None] = {
    "decode, batch 1": 8,
    "decode, batch 8": 18,
    "decode, batch 32": 40,
    "prefill, 512 tokens": 330,
    "prefill, 512 tokens after 512": None,
}
REPETITIONS = {"decode": 30, "prefill": 5}


def batch(starts: list[int], length: int) -> ForwardInputs:
    """Segments of `length` tokens at `starts`, one for each slot; the last row of each is scored."""
    random = np.random.default_rng(0)
    pages = random.permutation(SLOTS * PAGES_PER_SLOT).reshape(SLOTS, PAGES_PER_SLOT)
    count = len(starts)
    offsets = np.arange(count + 1, dtype=np.int32) * length
    positions = (np.asarray(starts)[:, None] + np.arange(length)).ravel()
    return ForwardInputs(
        tokens=random.integers(100, 40_000, count * length).astype(np.int32),
        positions=positions.astype(np.int32),
        slots=np.arange(count, dtype=np.int32),
        starts=np.asarray(starts, np.int32),
        lengths=np.full(count, length, np.int32),
        offsets=offsets,
        page_table=pages.astype(np.int32),
        logit_rows=offsets[1:] - 1,
    )


def batches() -> dict[str, ForwardInputs]:
    """One batch for each line of the table."""
    return {
        "decode, batch 1": batch([CONTEXT], 1),
        "decode, batch 8": batch([CONTEXT] * 8, 1),
        "decode, batch 32": batch([CONTEXT] * 32, 1),
        "prefill, 512 tokens": batch([0], 512),
        "prefill, 512 tokens after 512": batch([512], 512),
    }


def made(kind: type[NativeBackend] | type[TorchDecoder], threads: int) -> Backend:
    """A backend with weights and a store of its own."""
    source = resolve_source("smollm2")
    dtype = torch.bfloat16
    kv = KvStore(source.config, num_pages=SLOTS * PAGES_PER_SLOT, page_size=PAGE_SIZE, dtype=dtype, device="cpu")
    return kind(source.config, load_weights(source, dtype), kv, threads=threads)


def step_ms(backend: Backend, name: str, inputs: ForwardInputs) -> Spread:
    """Wall time of one forward, milliseconds."""
    inputs = replace(inputs, tokens=upload(inputs.tokens, backend.device))
    with torch.inference_mode():
        return repeat(lambda: seconds_of(lambda: backend.forward(inputs)) * 1e3, REPETITIONS[name.split(",")[0]])


def main() -> None:
    """Measure, print, write."""
    threads = int(sys.argv[1]) if len(sys.argv) > 1 else available_threads()
    native, plain = made(NativeBackend, threads), made(TorchDecoder, threads)
    results = [
        Result(name, step_ms(native, name, inputs), "ms", "torch", step_ms(plain, name, inputs), TARGETS_MS[name])
        for name, inputs in batches().items()
    ]
    print(table(f"One step of SmolLM2-135M, bfloat16, {threads} threads, context {CONTEXT}", results))
    print(f"written to {write_json(results, 'bench-native.json')}")


if __name__ == "__main__":
    main()
