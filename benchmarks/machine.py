"""How much of the machine was really there while something was timed: spinning threads and the kernel's accounts.

A virtual machine's processors are at times one processor of work between them, and other processes take their share.
Figures of such moments are not wrong, but they say little about the engine; so the state of the machine is measured
before and after each timed part and printed beside it.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

SPIN_S = 0.2
BLOCK = bytes(1 << 20)
"""Hashed over and over by a spinning thread; hashing lets go of the interpreter's lock."""
TICKS = os.sysconf("SC_CLK_TCK")
PROCESSES = Path("/proc")
IDLE_COLUMNS = (3, 4)
"""Of the first line of /proc/stat: idle, and waiting for a disk."""


def num_processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0))


class Spinner:
    """Measures how many processors answer, relative to the best that one thread ever did in this process."""

    def __init__(self) -> None:
        self._best = 0.0
        for _ in range(5):
            self._work(1)

    def effective_processors(self) -> float:
        """Work of one spinning thread for each processor, over the best work of a single one; 2.0 is two whole ones."""
        return self._work(num_processors()) / self._best

    def _work(self, num_threads: int) -> float:
        """Blocks hashed a second by that many threads together."""
        counts = [0] * num_threads
        ends = time.perf_counter() + SPIN_S

        def spin(index: int) -> None:
            while time.perf_counter() < ends:
                hashlib.sha256(BLOCK).digest()
                counts[index] += 1

        threads = [threading.Thread(target=spin, args=(index,)) for index in range(num_threads)]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - began
        self._best = max(self._best, max(counts) / seconds)
        return sum(counts) / seconds


@dataclass(frozen=True)
class Health:
    """The machine during one timed part."""

    processors: float
    """Effective processors, the lesser of before and after."""
    foreign: float
    """Processors' worth of work that others did meanwhile, an idle peer included; time the hypervisor took as well."""


class Watch:
    """Takes the machine's state around one timed part, whose work is done by the processes at `roots`."""

    def __init__(self, spinner: Spinner, roots: Iterable[int]) -> None:
        self._spinner = spinner
        self._roots = [os.getpid(), *roots]
        self._before = spinner.effective_processors()
        self._busy, self._own, self._began = busy_seconds(), self._own_seconds(), time.perf_counter()

    def done(self) -> Health:
        """The part has just ended."""
        seconds = time.perf_counter() - self._began
        foreign = (busy_seconds() - self._busy) - (self._own_seconds() - self._own)
        after = self._spinner.effective_processors()
        return Health(min(self._before, after), max(0.0, foreign / seconds))

    def _own_seconds(self) -> float:
        # This process is counted alone: its children are the engines, and the idle ones are strangers here.
        own, *active = self._roots
        return cpu_seconds([own]) + cpu_seconds(pid for root in active for pid in tree(root))


def tree(root: int) -> list[int]:
    """`root` and all its descendants that live."""
    children: dict[int, list[int]] = {}
    for entry in PROCESSES.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        found.append(pid)
        waiting += children.get(pid, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of these processes so far; those that have ended count for nothing."""
    stats = [fields for pid in pids if (fields := _stat(pid)) is not None]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / TICKS


def busy_seconds() -> float:
    """Processor time that was not idle since the machine started, all processors together, stolen time included."""
    columns = [int(value) for value in (PROCESSES / "stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(columns) - sum(columns[column] for column in IDLE_COLUMNS)) / TICKS


class Resident(NamedTuple):
    """Memory of a process that is in use, MiB."""

    now_mb: float
    peak_mb: float


def resident(pid: int) -> Resident:
    """Raises OSError for a process that is gone or has ended."""
    status = dict(line.partition(":")[::2] for line in (PROCESSES / str(pid) / "status").read_text().splitlines())
    if "VmRSS" not in status:
        raise ProcessLookupError(f"process {pid} has no memory any more")
    return Resident(*(int(status[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM")))


def peak_memory(pids: Iterable[int]) -> int:
    """Bytes: the sum of each process's largest resident set. Pages that processes share count in each of them."""
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            total += resident(pid).peak_mb
    return int(total * 2**20)


def _stat(pid: int) -> list[str] | None:
    """Columns of /proc/<pid>/stat from the third on: state, parent, ...; None when the process is gone."""
    try:
        return (PROCESSES / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
