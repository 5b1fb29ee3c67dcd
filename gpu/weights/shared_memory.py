"""Reading a POSIX shared memory segment that somebody else has made, and may change or remove at any time."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pawl.gpu.step_runner import WeightsRefused

SEGMENTS = Path("/dev/shm")
"""Where Linux has them as files."""


def read_segment(name: str, size: int, most: int) -> bytes:
    """The first `size` bytes, at most `most`, of the segment of this name, one part of a path. A copy: what is only
    mapped could change after it was verified, and reading a mapping that its owner has cut short ends the process.
    Raises WeightsRefused."""
    if size > most:
        raise WeightsRefused(f"a segment of {size} bytes: all weights of this model have at most {most}")
    try:
        handle = os.open(SEGMENTS / Path(name).name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise WeightsRefused(f"shared memory {name} cannot be opened: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise WeightsRefused(f"{name} is not a shared memory segment")
        data = file.read(size)
    if len(data) < size:
        raise WeightsRefused(f"shared memory {name} has {len(data)} bytes, not {size}")
    return data
