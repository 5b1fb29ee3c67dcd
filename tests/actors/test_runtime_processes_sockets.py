"""The thread that reads all sockets looks after each wire when it is due, also while nothing comes."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from pawl.actors.runtime.processes.sockets import Sockets
from tests.actors.runtime_doing import GENEROUS_S


class Overdue:
    """A link that is late a few times, and then has time."""

    def __init__(self) -> None:
        self.late = 3
        self.in_time = threading.Event()

    def tick(self) -> float:
        self.late -= 1
        if self.late:
            return 1.0
        self.in_time.set()
        return 1e9


def test_a_wire_that_is_late_is_looked_after_although_nothing_is_read(tmp_path: Path) -> None:
    sockets = Sockets(lambda: 5.0)
    link: Any = Overdue()
    wire = sockets.bind(f"ipc://{tmp_path}/link")
    wire.carry(link)
    try:
        assert link.in_time.wait(GENEROUS_S)
    finally:
        sockets.close()


def test_nothing_is_open_any_more_once_sockets_are_closed(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    sockets, link = Sockets(lambda: 5.0), Overdue()
    wire = sockets.bind(f"ipc://{tmp_path}/link")
    wire.carry(link)  # type: ignore[arg-type]
    sockets.close()
    assert set(os.listdir("/proc/self/fd")) == before
