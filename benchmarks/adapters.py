"""What adapters cost: steps of the compiled CPU kernels with requests of different adapters, against the same without.

    python -m benchmarks.adapters [--rounds N] [--rank N]

SmolLM2-135M in bfloat16, adapters of all seven matrices of each layer. One thread, and its processor time: other
programs disturb that less than a clock. All kinds of steps take turns; what is told is the median over rounds of each
one's ratio to the base model's step in the same round, and the quarters around it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from benchmarks.native import CONTEXT, batch, made
from pawl.gpu.adapters.small import random_adapter
from pawl.gpu.backend import Backend, ForwardInputs
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.native.backend import NativeBackend
from pawl.gpu.weights.source import resolve_source

DECODE, PROMPT = "decode, 32 rows", "prompt, 512 tokens"


def kinds(backend: Backend, config: ModelConfig, rank: int) -> dict[str, dict[str, ForwardInputs]]:
    """For each kind of step the base model's, called "base", and those with adapters."""
    packed = [backend.pack_adapter(random_adapter(config, rank, seed)) for seed in range(4)]
    decode, prompt = batch([CONTEXT] * 32, 1), batch([0], 512)
    return {
        DECODE: {
            "base": decode,
            "base again": replace(decode),
            "one row of 32": replace(decode, adapters=[packed[0], *[None] * 31]),
            "1 adapter": replace(decode, adapters=packed[:1] * 32),
            "4 adapters, eight rows side by side": replace(decode, adapters=[packed[i // 8] for i in range(32)]),
            "4 adapters, in turns": replace(decode, adapters=packed * 8),
        },
        PROMPT: {"base": prompt, "base again": replace(prompt), "1 adapter": replace(prompt, adapters=packed[:1])},
    }


def seconds(backend: Backend, inputs: ForwardInputs, steps: int) -> float:
    """Processor time of so many forwards."""
    began = time.process_time()
    for _ in range(steps):
        backend.forward(inputs)
    return time.process_time() - began


def quarters(values: Sequence[float]) -> str:
    """The median, and the quarters around it."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} ({low:.3f} - {high:.3f})"


@torch.inference_mode()
def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--rank", type=int, default=16)
    arguments = parser.parse_args()
    config = resolve_source("smollm2").config
    backend = made(NativeBackend, 1)
    for kind, steps in kinds(backend, config, arguments.rank).items():
        count = 4 if kind == DECODE else 1
        taken: dict[str, list[float]] = {name: [] for name in steps}
        for turn in range(arguments.rounds + 1):
            for name, inputs in steps.items():
                spent = seconds(backend, inputs, count)
                if turn:
                    taken[name].append(spent)
        print(f"{kind}: base {statistics.median(taken['base']) / count * 1e3:.1f} ms")
        for name, values in taken.items():
            ratios = [own / base for own, base in zip(values, taken["base"], strict=True)]
            print(f"  {name:40} {quarters(ratios)}")


if __name__ == "__main__":
    main()
