"""A call that does not return is ended, by an exception at the line where it is. Where no exception can end it, or it
ends its process, another process that watches this one knows which call it was."""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import struct
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_HEAD = struct.Struct("<QII")
"""Number of the newest call, bytes of its words (0: none is under way), bytes of what was noted."""
WHERE = signal.SIGUSR1
"""Tells a process that is watched to write where it is; it does so within code that is not Python's, too."""
_MOST_WORDS = 1 << 10
_MOST_NOTED = 1 << 16
DEAF = 79
"""Status of a process whose call has closed the file by which it tells what it finds."""
MOST_FRAMES = 4
"""Of where a process is, told to a person."""
_OURS = str(Path(__file__).parents[1])
"""Where what calls the user's code stands."""


class Hung(BaseException):
    """The time of a call is over. No `Exception`, so that what hangs does not survive it as one."""


class Pulse:
    """What a process calls right now, in memory that it shares with the one that has forked it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _HEAD.size + _MOST_WORDS + _MOST_NOTED)
        self.frames = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with its owner
        """Where the process writes what it is at when it is told so by `WHERE`."""
        self._reports: os.stat_result | None = None
        self._descriptor = -1

    def tells_by(self, descriptor: int) -> None:
        """This file tells what the process finds."""
        self._descriptor, self._reports = descriptor, os.fstat(descriptor)

    @property
    def deaf(self) -> bool:
        """Whether that file was closed, or is another one now."""
        if self._reports is None:
            return False
        try:
            return not os.path.samestat(os.fstat(self._descriptor), self._reports)
        except OSError:
            return True

    def begin(self, words: bytes) -> bytes:
        """A call begins that these words name; none: it is over. Gives the words of the call that it is part of."""
        number, length, noted = _HEAD.unpack_from(self._memory)
        before = self._memory[_HEAD.size : _HEAD.size + length]
        words = words[:_MOST_WORDS]
        self._memory[_HEAD.size : _HEAD.size + len(words)] = words
        _HEAD.pack_into(self._memory, 0, number + 1, len(words), noted)
        return before

    def note(self, text: str, *, anew: bool = False) -> None:
        """Add to what is known of the run; `anew`: of one that begins."""
        number, length, noted = _HEAD.unpack_from(self._memory)
        at = _HEAD.size + _MOST_WORDS + (0 if anew else noted)
        data = text.encode(errors="replace")[: len(self._memory) - at]
        self._memory[at : at + len(data)] = data
        _HEAD.pack_into(self._memory, 0, number, length, (0 if anew else noted) + len(data))

    @property
    def number(self) -> int:
        """Of the newest call."""
        return int(_HEAD.unpack_from(self._memory)[0])

    @property
    def call(self) -> str:
        """The words of the call that is under way; empty: there is none."""
        length = _HEAD.unpack_from(self._memory)[1]
        return self._memory[_HEAD.size : _HEAD.size + length].decode(errors="replace")

    def where(self) -> list[str]:
        """The lines at which the process was when it was asked, those of what it calls, the innermost first."""
        self.frames.seek(0)
        lines = [line.rstrip() for line in self.frames if line.startswith("  File ")]
        ours = (number for number, line in enumerate(lines) if _OURS in line)
        return lines[: min(next(ours, len(lines)), MOST_FRAMES)]

    @property
    def noted(self) -> str:
        """What is known of the run."""
        at = _HEAD.size + _MOST_WORDS
        return self._memory[at : at + _HEAD.unpack_from(self._memory)[2]].decode(errors="replace")


_watched: list[Pulse] = []
"""One, in a process that another one watches."""


def be_watched(pulse: Pulse) -> None:
    """To be called in the process that is watched, before anything else. It is not interrupted by keys any more: who
    watches it is, and ends it. So what looks as if a key had been pressed comes of what is called."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.register(WHERE, pulse.frames, all_threads=False)
    _watched[:] = [pulse]


def note(text: str, *, anew: bool = False) -> None:
    """See `Pulse.note`; nothing, where nobody watches."""
    for pulse in _watched:
        pulse.note(text, anew=anew)


def pressed(error: BaseException) -> bool:
    """Whether somebody wants the exploration to end."""
    return isinstance(error, KeyboardInterrupt) and not _watched


@contextmanager
def limited(seconds: float, *, of_processor: bool = False, call: str = "") -> Iterator[None]:
    """Raises Hung within the block after so much time; `of_processor`: in which the process has computed, so that who
    waits is not limited, and a busy machine is no matter. Only Python's main thread can be told; elsewhere, and where
    the system has no timers, nothing is limited, nor within code that is not Python's. Whoever watches this process is
    told of the `call`. Within such a block another one may be."""
    words = call.encode(errors="replace")
    before = [pulse.begin(words) for pulse in _watched]
    try:
        with _timed(seconds, of_processor):
            yield
    finally:
        for pulse, outer in zip(_watched, before, strict=True):
            if pulse.deaf:  # while it is known which call it was
                os._exit(DEAF)
            pulse.begin(outer)


@contextmanager
def _timed(seconds: float, of_processor: bool) -> Iterator[None]:
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise Hung

    number, timer = (signal.SIGPROF, signal.ITIMER_PROF) if of_processor else (signal.SIGALRM, signal.ITIMER_REAL)
    before = signal.signal(number, over)
    outer, _ = signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, outer)
        signal.signal(number, before)
