"""The process of a replica, or of an outpost of one, as the one that has started it sees it."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

import msgspec

from pawl.build.ready import Setup, Told
from pawl.gpu.children import python, start
from pawl.gpu.frames import read_frame, write_frame


class Child:
    """A process of this one (`Running`), which ends with it: the end of its input is the end of its parent."""

    def __init__(self, setup: Setup) -> None:
        self._process = self._start(setup)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            write_frame(self._process.stdin, msgspec.msgpack.encode(setup))

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self, setup: Setup) -> subprocess.Popen[bytes]:
        """A session of its own: what ends the front from a terminal ends its replica when the front says so."""
        return start(
            python("pawl.build.outpost" if setup.part else "pawl.build.replica"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )

    def heard(self) -> Told | None:
        assert self._process.stdout is not None
        try:
            frame = read_frame(self._process.stdout)
        except ValueError:  # closed: it was killed
            return None
        return None if frame is None else msgspec.msgpack.decode(frame, type=Told)

    def wait(self, timeout_s: float | None = None) -> str | None:
        try:
            return how_it_ended(self._process.wait(timeout_s))
        except subprocess.TimeoutExpired:
            return None

    def leave(self) -> None:
        """Let it end in order, as one whose parent is gone."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def how_it_ended(status: int) -> str:
    """The status of a process, in words."""
    return f"killed by signal {-status}" if status < 0 else f"exit status {status}"
