"""Processes of our own that run one of our modules, and that only their parent ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
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
