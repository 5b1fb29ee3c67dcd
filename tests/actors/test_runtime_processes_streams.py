"""Messages over a stream: whole and in order however they are cut, and an end where what comes is none."""

from __future__ import annotations

import math
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pawl.actors.runtime.codec import Frame
from pawl.actors.runtime.drivers import visitor
from pawl.actors.runtime.processes.frames import MOST_BYTES, MOST_FRAMES
from pawl.actors.runtime.processes.readers import Readers, polling_streams
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.streams import AT_ONCE_BYTES, Broken, Incoming, StreamWire, after
from pawl.actors.runtime.processes.wires import SocketWire
from tests.actors.linked_systems import wait_for


def written(frames: Sequence[bytes]) -> bytes:
    """As the module says."""
    lengths = [len(frame) for frame in frames]
    return struct.pack(f"<{1 + len(lengths)}I", len(lengths), *lengths) + b"".join(frames)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    other.setblocking(False)
    yield one, other
    one.close()
    other.close()


def everything(incoming: Incoming, source: socket.socket) -> list[list[bytes]]:
    """What has come by now."""
    found: list[list[bytes]] = []
    try:
        while True:
            found += [[bytes(frame) for frame in frames] for frames in incoming.read(source)]
    except BlockingIOError:
        return found


@pytest.mark.parametrize("seed", range(20))
def test_messages_are_whole_however_they_are_cut(seed: int, pair: tuple[socket.socket, socket.socket]) -> None:
    chance = random.Random(seed)
    one, other = pair
    sizes = (0, 1, 7, 300, AT_ONCE_BYTES - 20, AT_ONCE_BYTES, AT_ONCE_BYTES + 1, 3 * AT_ONCE_BYTES)
    messages = [
        [chance.randbytes(chance.choice(sizes)) for _ in range(chance.choice((1, 2, 3, 40)))]
        for _ in range(chance.randrange(1, 12))
    ]
    stream, incoming, found = b"".join(map(written, messages)), Incoming(), []
    while stream:
        cut = chance.choice((1, 3, 50, 5000, AT_ONCE_BYTES, 150_000))
        one.sendall(stream[:cut])
        stream = stream[cut:]
        found += everything(incoming, other)
    assert found == messages
    one.close()
    with pytest.raises(EOFError):
        incoming.read(other)


def test_arrays_of_large_messages_lie_where_numbers_do(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    one.sendall(written([b"head", bytes(100_000), bytes(8)]))
    incoming, frames = Incoming(), []
    while not frames:
        frames = incoming.read(other)
    assert [np.frombuffer(frame, np.uint8).ctypes.data % 8 for frame in frames[0][1:]] == [0, 0]


@pytest.mark.parametrize("head", [(0,), (MOST_FRAMES + 1,), (1, MOST_BYTES + 1), (2**32 - 1, 2**32 - 1)])
def test_what_is_no_message_is_the_end(head: tuple[int, ...], pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    one.sendall(written([b"before"]) + struct.pack(f"<{len(head)}I", *head))
    with pytest.raises(Broken):
        Incoming().read(other)


def test_what_is_left_of_parts() -> None:
    parts = [memoryview(b"ab"), memoryview(b""), memoryview(b"cde")]
    lefts = [b"".join(after(parts, count)) for count in range(6)]
    assert lefts == [b"abcde", b"bcde", b"cde", b"de", b"e", b""]


class Noted:
    """A link that notes what comes."""

    peer = "other"

    def __init__(self) -> None:
        self.heard: list[list[bytes]] = []
        self.hung: list[str] = []
        self.pumps = threading.Semaphore(0)

    def receive(self, frames: Sequence[Frame]) -> None:
        self.heard.append([bytes(frame) for frame in frames])

    def hung_up(self, reason: str) -> None:
        self.hung.append(reason)

    def pump(self) -> None:
        self.pumps.release()

    def tick(self) -> float:
        return 1e12


@pytest.mark.parametrize("system", ["any", "without epoll"])
def test_a_wire_takes_no_more_while_it_is_full_and_says_when_it_does(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system != "any":
        monkeypatch.delattr(select, "epoll", raising=False)
    sockets, elsewhere = Sockets(), Sockets()
    one: Any = Noted()
    other: Any = Noted()
    waits = sockets.bind(f"ipc://{tmp_path}/link")
    assert not waits.send([b"nobody is there yet"])
    comes = elsewhere.join(f"ipc://{tmp_path}/link")
    waits.carry(one)
    one.pumps.acquire()
    page, count = bytes(range(256)) * 4096, 0
    while waits.send([b"%d" % count, page]):
        count += 1
    assert count
    assert not waits.send([b"still"])
    comes.carry(other)
    one.pumps.acquire()
    assert waits.send([b"again"])
    waits.close(60.0)
    wait_for(lambda: bool(other.hung))
    assert other.heard == [*([b"%d" % at, page] for at in range(count)), [b"again"]]
    sockets.close()
    elsewhere.close()
    assert not list(tmp_path.iterdir())


def test_what_is_no_message_is_counted_and_ends_the_wire(tmp_path: Path) -> None:
    sockets, link = Sockets(), Noted()
    waits = sockets.bind(f"ipc://{tmp_path}/link")
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(f"{tmp_path}/link")
    anything: Any = link
    waits.carry(anything)
    stranger.sendall(bytes(100))
    wait_for(lambda: bool(link.hung))
    assert link.heard == [[]]
    assert link.hung == ["a message of 0 frames"]
    stranger.close()
    sockets.close()


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="one thread reads, and runs nobody")
def test_who_has_not_read_all_there_is_runs_nobody(tmp_path: Path) -> None:
    sockets, may_run = Sockets(), []

    class Heard(Noted):
        def receive(self, frames: Sequence[Frame]) -> None:
            may_run.append(visitor.may_run)

    link: Any = Heard()
    waits = sockets.bind(f"ipc://{tmp_path}/link")
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(f"{tmp_path}/link")
    stranger.sendall(written([bytes(AT_ONCE_BYTES // 2)]) * 3)
    waits.carry(link)
    wait_for(lambda: len(may_run) == 3)
    assert may_run == [True, False, False]
    stranger.close()
    sockets.close()


def test_where_there_is_no_wire_nothing_is_looked_after() -> None:
    readers = Readers(polling_streams(), time.monotonic)
    readers.close()
    # A time an hour after the start of the machine is past, and a wait that is over at once keeps a core busy.
    assert readers._tick() == math.inf


def test_all_wires_that_are_closed_are_shut_when_they_are_looked_after() -> None:
    class Closed:
        """A wire that is to be shut."""

        def __init__(self, closed: bool) -> None:
            self.closed, self.num_shut = closed, 0

        def shut(self) -> None:
            self.num_shut += 1

        def tick(self) -> float:
            return 7.0

        def polled(self) -> list[tuple[Any, bool, bool]]:
            return []

    readers = Readers(polling_streams(), time.monotonic)
    readers.close()
    wires: Any = [Closed(closed) for closed in (True, False, True, True)]
    readers._wires = list(wires)
    assert readers._tick() == 7.0
    assert [wire.num_shut for wire in wires] == [1, 0, 1, 1]
    assert readers._wires == wires[1:2]


def test_whoever_wakes_the_threads_never_waits_for_them_however_long_they_are_at_something() -> None:
    readers = Readers(polling_streams(), time.monotonic)
    with readers._reading:  # none of them reads what wakes it
        assert not os.get_blocking(readers._waking)
        assert not os.get_blocking(readers._pipe)
        for _ in range(1 << 17):
            readers.wake()
    readers.close()


def test_a_stream_that_ends_in_the_middle_of_a_large_message_has_ended(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, other = pair
    incoming = Incoming()
    one.sendall(written([bytes(2 * AT_ONCE_BYTES)])[:-1])
    assert everything(incoming, other) == []
    one.close()
    with pytest.raises(EOFError):
        incoming.read(other)


class Nobody:
    """Reads for nobody."""

    def wake(self) -> None: ...

    def add(self, wire: SocketWire) -> None: ...


def test_a_wire_to_which_nobody_has_come_takes_nothing_however_often_it_is_looked_at(tmp_path: Path) -> None:
    link: Any = Noted()
    waits = StreamWire(Nobody(), f"{tmp_path}/link", waits=True)
    waits.carry(link)
    waits.look()
    assert waits.blocked
    assert not waits.send([b"it would be lost"])
    comes = StreamWire(Nobody(), f"{tmp_path}/link", waits=False)
    assert waits.polled() == [(waits._socket.fileno(), True, False)], "nobody is there to be written to"
    waits.look()
    assert waits.send([b"now"])
    for full in (False, True):
        waits.blocked = full
        # What can be written at any time would keep who waits for it awake.
        assert waits.polled() == [(waits._socket.fileno(), True, full)]
    waits._ended = True
    assert waits.polled() == []
    for wire in (waits, comes):
        wire.shut()


@pytest.mark.parametrize("linger_s", [0.0, 60.0])
def test_what_was_not_written_yet_goes_before_a_wire_is_shut_if_there_is_time_for_it(
    linger_s: float, tmp_path: Path
) -> None:
    waits = StreamWire(Nobody(), f"{tmp_path}/link", waits=True)
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(f"{tmp_path}/link")
    waits._accept()
    frames, read = [b"head", bytes(1 << 22)], bytearray()

    def read_all() -> None:
        while chunk := stranger.recv(1 << 20):
            read.extend(chunk)

    assert waits._send(frames)
    assert waits.blocked, "more than a socket takes at once"
    reading = threading.Thread(target=read_all)
    waits.close(linger_s)
    if linger_s:
        reading.start()
        waits.shut()
    else:
        waits.shut()
        reading.start()
    reading.join(60.0)
    stranger.close()
    assert (bytes(read) == written(frames)) == bool(linger_s)
    assert waits.polled()[0][0] == -1, "it is closed"


def test_what_a_link_cannot_hear_ends_it_with_the_kind_of_failure() -> None:
    class Deaf(Noted):
        def receive(self, frames: Sequence[Frame]) -> None:
            raise RuntimeError("a defect")

        def ends(self, reason: str) -> None:
            self.hung.append(reason)

    link: Any = Deaf()
    SocketWire._hear(None, link, [b""])  # type: ignore[arg-type]
    assert link.hung == ["what it said could not be handled: RuntimeError"]
