"""The memory of the process."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path

_STATM = Path("/proc/self/statm")


def give_back_memory() -> None:
    """Return what was freed to the system: glibc keeps for each thread what that thread has freed. Other allocators do
    it by themselves. Other threads go on, but may wait for their next allocation."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_bytes() -> int | None:
    """What of it is in use; None where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return None
