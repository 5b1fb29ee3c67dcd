"""The thread that reads all sockets looks after each wire when it is due, also while nothing comes."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import zmq

from pawl.actors.runtime.processes import sockets
from pawl.actors.runtime.processes.frames import MOST_BYTES
from pawl.actors.runtime.processes.keys import make_keys, read_keys
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
    made = Sockets(lambda: 5.0)
    link: Any = Overdue()
    wire = made.bind(f"ipc://{tmp_path}/link")
    wire.carry(link)
    try:
        assert link.in_time.wait(GENEROUS_S)
    finally:
        made.close()


def test_nothing_is_open_any_more_once_sockets_are_closed(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    made, link = Sockets(lambda: 5.0), Overdue()
    wire = made.bind(f"ipc://{tmp_path}/link")
    wire.carry(link)  # type: ignore[arg-type]
    made.close()
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("address", ["ipc://anywhere", "inproc://[there]"])
def test_a_socket_takes_no_larger_frame_than_a_message_has_and_keeps_nobody_waiting_at_its_end(address: str) -> None:
    made = Sockets()
    with made.socket(zmq.PULL, address, None, server=True) as socket:
        found = [socket.get(option) for option in (zmq.MAXMSGSIZE, zmq.LINGER, zmq.IPV6)]
    made.close()
    assert found == [MOST_BYTES, 0, int("[" in address)]


def test_few_messages_wait_in_sockets_where_no_mailbox_counts_them(tmp_path: Path) -> None:
    make_keys(tmp_path)
    made, keys = Sockets(), read_keys(tmp_path)
    waits: Any = made.bind("tcp://127.0.0.1:0", keys)
    comes: Any = made.join(waits.address, keys)
    limits = [
        socket.get(option)
        for wire in (waits, comes)
        for socket, option in ((wire._push, zmq.SNDHWM), (wire._pull, zmq.RCVHWM))
    ]
    for wire in (waits, comes):
        wire.shut()
    made.close()
    assert limits == [sockets.IN_SOCKETS] * 4


def test_a_wire_at_a_port_that_was_named_is_where_it_was_told_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bound:
        """A socket that has found its place by another name."""

        def __init__(self) -> None:
            self.at: list[str] = []

        def set(self, option: int, value: object) -> None: ...

        def bind(self, address: str) -> None:
            self.at.append(address)

        def get(self, option: int) -> bytes:
            return b"tcp://elsewhere:9"

    monkeypatch.setattr(Sockets, "socket", lambda *_, **__: Bound())
    made = Sockets()
    wire: Any = made.bind("tcp://there:5000")
    made.close()
    assert (wire.address, wire._pull.at, wire._push.at) == (
        "tcp://there:5000",
        ["tcp://there:5000"],
        ["tcp://there:5001"],
    )


@pytest.mark.parametrize(("error", "tries"), [(errno.EADDRINUSE, sockets.MOST_TRIES), (errno.EACCES, 1)])
def test_only_a_port_that_is_taken_is_tried_again(error: int, tries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def fails(self: Sockets, address: str, keys: object, *, bind: bool) -> None:
        tried.append(address)
        raise OSError(error, "no such luck")

    monkeypatch.setattr(Sockets, "_open", fails)
    made = Sockets()
    for address in ("tcp://127.0.0.1:0", "tcp://127.0.0.1:5000"):
        with pytest.raises(OSError, match="no such luck"):
            made.bind(address)
    made.close()
    assert tried == ["tcp://127.0.0.1:0"] * tries + ["tcp://127.0.0.1:5000"]
