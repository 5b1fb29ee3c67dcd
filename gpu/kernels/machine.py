"""What kernels need to know about where they run."""

from __future__ import annotations

import os
from functools import cache

import torch
import triton

INTERPRETED_PROGRAMS = 3
"""Programs of a persistent kernel under the interpreter: more than one, so that work really is shared out."""


def interpreted() -> bool:
    """Whether kernels run under Triton's interpreter, on the CPU. Fixed once Triton has been imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def num_programs(device: torch.device, each: int) -> int:
    """Programs of a persistent kernel: `each` for every multiprocessor of the device, whatever the batch."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count) * each


def padded(size: int, least: int = 1) -> int:
    """The power of two that holds `size`: blocks have such sizes."""
    return max(least, int(triton.next_power_of_2(size)))
