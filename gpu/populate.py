"""Memory for pages before a step writes to them.

A system finds memory when it is first written, and clears it; under a virtual machine its host then does the same. For
each huge page that can take milliseconds, in the middle of a step, while its other threads wait. So as pages come into
use, a thread of the least priority has the system find what follows, a bounded number of bytes ahead. Where it does not
come to run, or the system cannot do that (Linux can since 5.14), memory is found as it is written.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from contextlib import suppress
from threading import Lock, Thread, get_native_id
from typing import Any

import numpy as np
from numpy.typing import NDArray

AHEAD_BYTES = 96 << 20
"""Of all layers together."""
LEAST_BYTES = 256 << 20
"""Smaller stores are not worth a thread."""
_PAGES_AT_ONCE = 64
_MADV_POPULATE_WRITE = 23
_LEAST_PRIORITY = 19


def populate(array: NDArray[Any]) -> None:
    """Have memory behind a contiguous array, whose bytes stay; whole pages of the system, those at its ends too.
    Raises OSError where the system cannot do that."""
    start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
    end = array.ctypes.data + array.nbytes
    library = ctypes.CDLL(None, use_errno=True)
    if library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), ctypes.c_int(_MADV_POPULATE_WRITE)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Ahead:
    """Of one store. Called by one thread."""

    def __init__(self, rows: NDArray[np.uint8], ahead_bytes: int) -> None:
        """`rows` [rows, pages, bytes], contiguous: a page has its bytes of each row."""
        self._rows = rows
        self._ahead = max(1, ahead_bytes // (rows.shape[0] * rows.shape[2]))
        self._wanted = self._had = 0  # pages, from the first
        self._open = True
        self._lock = Lock()
        self.thread: Thread | None = None
        """What works at it, or has."""

    def reached(self, page: int) -> None:
        """This page is in use now, and all below may be."""
        if page + self._ahead // 2 < self._had or self._had == self._rows.shape[1]:
            return
        self._wanted = min(page + 1 + self._ahead, self._rows.shape[1])
        if self.thread is None or not self.thread.is_alive():
            self.thread = Thread(target=self._run, name="pawl-populate", daemon=True)
            self.thread.start()

    def close(self) -> None:
        """Nothing is had from now on, not even what has begun: the memory is given back."""
        with self._lock:
            self._open = False

    def open(self) -> None:
        """What was had is gone, and may be had again."""
        self._wanted = self._had = 0
        self._open = True

    def _run(self) -> None:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, get_native_id(), _LEAST_PRIORITY)
        while self._had < self._wanted:
            until = min(self._had + _PAGES_AT_ONCE, self._wanted)
            for row in self._rows:
                # Between two rows the memory may be given back.
                with self._lock:
                    if not self._open:
                        return
                    try:
                        populate(row[self._had : until])
                    except OSError:
                        self._had = self._rows.shape[1]
                        return
            self._had = until


def ahead_of(rows: NDArray[np.uint8]) -> Ahead | None:
    """None where the store is small, or the system is another one."""
    return Ahead(rows, AHEAD_BYTES) if sys.platform == "linux" and rows.nbytes >= LEAST_BYTES else None
