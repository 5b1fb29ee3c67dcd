"""The heap of the process."""

from __future__ import annotations

import ctypes


def give_back_memory() -> None:
    """Return what was freed to the system: glibc keeps for each thread what that thread has freed. Other allocators do
    it by themselves. Other threads go on, but may wait for their next allocation."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
