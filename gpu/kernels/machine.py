"""What kernels need to know about where they run."""

from __future__ import annotations

import os
from functools import cache

import torch
import triton

INTERPRETED_PROCESSORS = 3
"""As many as the interpreter is said to have: few, so that small tests see what many programs do, and what few do."""


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter, on the CPU. Fixed once Triton has been imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def num_processors(device: torch.device) -> int:
    """Multiprocessors of the device: programs that run at the same time, at the least."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def padded(size: int, least: int = 1) -> int:
    """The power of two that holds `size`: blocks have such sizes."""
    return max(least, int(triton.next_power_of_2(size)))
