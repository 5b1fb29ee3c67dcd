"""Processes of our own that run one of our modules, and that only their parent ends; folders in which they meet."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

TO_END = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


def python(module: str) -> list[str]:
    """The command. What lies in the folder in which it runs is not taken for a module."""
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """In which it finds the modules that this process finds."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that calls `ended_by_parent` once it has read its modules; until then signals to end it wait."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_END)
    try:
        return subprocess.Popen(command, env=environment(), **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ended_by_parent() -> None:
    """Signals to end change nothing from now on. Who stops a service sends them to all its processes, and the parent
    ends its children in order, once all is answered. What this process starts hears them again."""
    for number in TO_END:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TO_END)


OWN = "pawl-own-"
"""How names of folders begin."""


class OwnFolder:
    """A folder of mode 0700 below the system's temporary one, locked for as long as this process is there. One that
    nobody locks is what a killed process has left (`remove_left`)."""

    def __init__(self, kind: str) -> None:
        self._lock: int | None = None
        while self._lock is None:  # another process may have removed it before it was locked
            self.path = Path(tempfile.mkdtemp(prefix=f"{OWN}{kind}-"))
            self._lock = _locked(self.path)

    def close(self) -> None:
        """Remove it. May be called twice."""
        shutil.rmtree(self.path, ignore_errors=True)
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)


def remove_left() -> None:
    """Remove what killed processes of this user have left of their own folders. For whoever starts a server."""
    for left in Path(tempfile.gettempdir()).glob(f"{OWN}*"):
        if (lock := _locked(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """The lock; None: somebody has it, it is another user's, or the folder is gone."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with suppress(OSError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if folder.exists():
            return lock
    os.close(lock)
    return None
