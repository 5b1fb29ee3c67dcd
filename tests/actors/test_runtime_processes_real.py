"""Two processes: what one is told when the other is killed, stands still, leaves, or has no key."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pawl.actors.runtime.actor import Actor, Down, Lane
from pawl.actors.runtime.codec import Codec
from pawl.actors.runtime.dead_letters import Reason
from pawl.actors.runtime.processes.keys import Keys, KeysUnusable, make_keys, read_keys
from pawl.actors.runtime.processes.link import HUNG_UP_S
from pawl.actors.runtime.processes.sockets import Sockets, both_ways
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.cli import main
from tests.actors.linked_systems import wait_for
from tests.actors.process_child import Ping, Pong

ROOT = Path(__file__).parent.parent.parent


class Listener(Actor):
    """Keeps what it is told."""

    accepts: Any = Pong | Down

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def receive(self, message: Any) -> None:
        self.heard.append(message)


class Parent:
    """This process, with a listener, and a child with an echo."""

    def __init__(self, address: str, keys: Path | None = None) -> None:
        self.now = 0.0
        self.left = threading.Event()
        self.listener = Listener()
        self.sockets = Sockets(lambda: self.now)
        process = Process("parent", Codec, on_left=lambda _: self.left.set())
        self.system = ProcessSystem(process, clock=lambda: self.now)
        # Room for every answer: one more than the echo takes at once would be refused while this process is busy.
        self.system.spawn(self.listener, "listener", capacity=4096)
        self.wire = self.sockets.bind(address, read_keys(keys) if keys else None)
        self.link = self.system.connect("child", self.wire)
        self.system.start()
        words = [sys.executable, "-m", "tests.actors.process_child", address, *([str(keys)] if keys else [])]
        self.child = subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE)
        wait_for(lambda: self.link.met)
        self.system.watch("listener", "echo")

    def talk(self, count: int) -> None:
        """Send so many pings and wait for their answers."""
        before = len(self.listener.heard)
        for number in range(count):
            assert self.system.send("echo", Ping(number))
        wait_for(lambda: len(self.listener.heard) == before + count)
        assert self.listener.heard[before:] == [Pong(number) for number in range(count)]

    def end(self) -> None:
        self.child.kill()
        self.child.wait()
        assert self.child.stdin is not None
        self.child.stdin.close()
        self.system.lost(self.link, "the test is over")
        self.system.stop(("listener",))
        self.sockets.close()


MakeParent = Callable[..., Parent]


@pytest.fixture
def make_parent(tmp_path: Path) -> Iterator[MakeParent]:
    made: list[Parent] = []

    def make(address: str = f"ipc://{tmp_path}/link", keys: Path | None = None) -> Parent:
        made.append(Parent(address, keys))
        return made[-1]

    yield make
    for parent in made:
        parent.end()


def test_one_that_is_killed_is_down_after_everything_it_said(make_parent: MakeParent) -> None:
    parent = make_parent()
    parent.talk(100)
    parent.child.kill()
    parent.child.wait()
    parent.link.ends("killed by signal 9")
    parent.now = 1.0
    parent.wire.wake()
    wait_for(lambda: len(parent.listener.heard) == 101)
    assert parent.listener.heard[-1] == Down("echo", "lost: killed by signal 9")
    assert not parent.system.send("echo", Ping(1))
    assert parent.system.dead_letters.by_reason[Reason.RECEIVER_GONE] == 1


def test_one_that_stands_still_is_down_when_its_heartbeats_are_missed(make_parent: MakeParent) -> None:
    parent = make_parent()
    parent.talk(10)
    parent.child.send_signal(signal.SIGSTOP)

    def down() -> bool:
        parent.now += parent.system.process.heartbeat.patience_s
        parent.wire.wake()
        return isinstance(parent.listener.heard[-1], Down)

    wait_for(down)
    assert parent.listener.heard[-1].reason.startswith("lost: silent for")


def test_one_that_leaves_as_it_should_is_not_down(make_parent: MakeParent) -> None:
    parent = make_parent()
    parent.talk(3)
    parent.child.communicate(b"")
    assert parent.left.wait(60.0)
    assert parent.child.returncode == 0
    assert parent.listener.heard[-1] == Pong(2)


def test_those_who_have_the_keys_talk_over_tcp_and_a_stranger_gets_nothing_and_breaks_nothing(
    make_parent: MakeParent, tmp_path: Path, free_ports: int
) -> None:
    import zmq

    make_keys(tmp_path / "keys")
    address = f"tcp://127.0.0.1:{free_ports}"
    parent = make_parent(address, tmp_path / "keys")
    parent.talk(10)
    public, secret = zmq.curve_keypair()
    ours = read_keys(tmp_path / "keys")
    strangers = [Keys(public, secret), Keys(ours.public, secret), None]
    with zmq.Context() as context:
        for keys in strangers:
            push, pull = context.socket(zmq.PUSH), context.socket(zmq.PULL)
            for socket, port in ((push, free_ports), (pull, free_ports + 1)):
                socket.linger = 0
                if keys is not None:
                    socket.curve_publickey, socket.curve_secretkey, socket.curve_serverkey = *keys, ours.public
                socket.connect(f"tcp://127.0.0.1:{port}")
            push.send_multipart([b"anything", b"else"])
            parent.talk(50)
            with pytest.raises(zmq.Again):
                pull.recv(zmq.NOBLOCK)
            push.close()
            pull.close()
    assert parent.system.dead_letters.total == 0


def test_a_wire_takes_free_ports_and_says_which(tmp_path: Path) -> None:
    make_keys(tmp_path / "keys")
    keys, sockets = read_keys(tmp_path / "keys"), Sockets()
    wires = [sockets.bind("tcp://127.0.0.1:0", keys) for _ in range(20)]
    assert len({port for wire in wires for port in both_ways(wire.address)}) == 40
    for wire in wires:
        with pytest.raises(OSError, match="in use"):
            sockets.bind(wire.address, keys)
        wire.shut()
    sockets.close()


@pytest.fixture
def free_ports() -> int:
    """The first of two ports that nobody listens at."""
    import socket

    for _ in range(100):
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port: int = one.getsockname()[1]
            try:
                other.bind(("127.0.0.1", port + 1))
            except (OSError, OverflowError):
                continue
            return port
    raise AssertionError("no two free ports in a row")


def test_nobody_else_finds_a_link_of_one_host(make_parent: MakeParent, tmp_path: Path) -> None:
    parent = make_parent()
    parent.talk(1)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="No such file"):
        parent.sockets.join(f"ipc://{tmp_path}/link")
    parent.talk(10)


def test_the_end_of_a_process_of_this_host_is_seen_by_itself(make_parent: MakeParent) -> None:
    parent = make_parent()
    parent.talk(100)
    parent.child.kill()
    wait_for(lambda: parent.link._ends is not None)  # the wire's
    parent.now += HUNG_UP_S  # less than any silence

    def down() -> bool:
        parent.wire.wake()
        return len(parent.listener.heard) == 101

    wait_for(down)
    assert parent.listener.heard[-1] == Down("echo", "lost: its end of the link is closed")


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts open files as Linux shows them")
def test_sockets_that_are_closed_keep_no_file_open(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    sockets = Sockets()
    sockets.bind(f"ipc://{tmp_path}/link")
    make_keys(tmp_path / "keys")
    sockets.bind("tcp://127.0.0.1:0", read_keys(tmp_path / "keys"))
    sockets.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_tcp_without_keys_is_refused(tmp_path: Path) -> None:
    sockets = Sockets()
    with pytest.raises(ValueError, match="keys"):
        sockets.bind("tcp://127.0.0.1:7000")
    with pytest.raises(ValueError, match="ipc://PATH"):
        sockets.join("udp://127.0.0.1:7000")
    with pytest.raises(OSError, match="nowhere"):
        sockets.bind(f"ipc://{tmp_path}/nowhere/link")
    sockets.close()


def test_keys_are_for_their_owner_alone_and_are_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    make_keys(folder)
    assert [path.stat().st_mode & 0o777 for path in (folder, *sorted(folder.iterdir()))] == [0o700, 0o600, 0o600]
    with pytest.raises(KeysUnusable, match="already"):
        make_keys(folder)
    assert len(set(read_keys(folder))) == 2


def test_a_command_makes_them_once_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "keys")
    assert [main(["keys", folder]), main(["keys", folder])] == [0, 1]
    read_keys(Path(folder))
    told = capsys.readouterr()
    assert "to nobody else" in told.out
    assert "is there already" in told.err


@pytest.mark.parametrize("how", ["absent", "no key", "open to others"])
def test_keys_that_cannot_be_used_are_refused_by_their_name(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "keys"
    make_keys(folder)
    secret = folder / "link.secret"
    match how:
        case "absent":
            secret.unlink()
        case "no key":
            secret.write_text("no key")
        case _:
            secret.chmod(0o644)
    with pytest.raises(KeysUnusable, match=r"link\.secret"):
        read_keys(folder)


def test_a_receiver_that_takes_nothing_holds_its_sender_back_whatever_sockets_hold(make_parent: MakeParent) -> None:
    parent = make_parent()
    parent.child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, parent.child.pid, os.WSTOPPED | os.WNOWAIT)  # a signal that is sent has not yet come
    accepted = [parent.system.send("echo", Ping(number)) for number in range(3000)]
    assert accepted == [True] * 1024 + [False] * 1976
    assert parent.system.send("echo", Ping(3000), Lane.CONTROL)
    parent.child.send_signal(signal.SIGCONT)
    wait_for(lambda: len(parent.listener.heard) == 1025)
    assert {pong.number for pong in parent.listener.heard} == {*range(1024), 3000}
