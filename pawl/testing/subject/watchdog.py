"""A call that does not return is ended, by an exception at the line where it is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Hung(BaseException):
    """The time of a call is over. No `Exception`, so that what hangs does not survive it as one."""


@contextmanager
def limited(seconds: float, *, of_processor: bool = False) -> Iterator[None]:
    """Raises Hung within the block after so much time; `of_processor`: in which the process has computed, so that who
    waits is not limited, and a busy machine is no matter. Only Python's main thread can be told; elsewhere, and where
    the system has no timers, nothing is limited, nor within code that is not Python's."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise Hung

    number, timer = (signal.SIGPROF, signal.ITIMER_PROF) if of_processor else (signal.SIGALRM, signal.ITIMER_REAL)
    before = signal.signal(number, over)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)
