"""Timing on a CUDA device, and the limits of the one at hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.harness import Spread
from pawl.gpu.models.config import ModelConfig, weight_shapes
from pawl.gpu.weights.checks import is_norm

DEVICE = "cuda"
REPETITIONS = 7


def clock() -> torch.cuda.Event:
    """An event that remembers when the device reached it."""
    event: torch.cuda.Event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    return event


def device_ms(work: Callable[[], object], *, calls: int = 10) -> Spread:
    """Milliseconds on the device of one call of `work`, from events around `calls` of them."""
    work()
    torch.cuda.synchronize()
    found = []
    for _ in range(REPETITIONS):
        begin, end = clock(), clock()
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end) / calls)
    return Spread.of(found)


def copy_bandwidth() -> float:
    """Bytes a second that a copy of 2 GiB reads and writes."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (device_ms(lambda: target.copy_(source)).low / 1e3)


def product_rate() -> float:
    """Multiplications and additions a second of the vendor's product of two bfloat16 matrices of 8,192 rows."""
    size = 8192
    first, second = (torch.randn(size, size, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / (device_ms(lambda: first @ second).low / 1e3)


def random_weights(config: ModelConfig) -> dict[str, torch.Tensor]:
    """Weights of unit gain, made on the device: norms float32, the rest bfloat16."""
    return dict(_random_weights(config))


def _random_weights(config: ModelConfig) -> Iterator[tuple[str, torch.Tensor]]:
    generator = torch.Generator(DEVICE).manual_seed(0)
    for name, shape in weight_shapes(config).items():
        if is_norm(name):
            yield name, torch.ones(shape, device=DEVICE)
        else:
            noise = torch.empty(shape, dtype=torch.bfloat16, device=DEVICE)
            yield name, noise.normal_(std=shape[-1] ** -0.5, generator=generator)
