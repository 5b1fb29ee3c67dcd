"""Where replicas live: what a front needs of a host, and of a process there. This host, and one like it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

import msgspec

from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.wires import SocketWire
from pawl.build.hosts.addresses import host_and_port
from pawl.build.hosts.child import Child
from pawl.build.ready import FRONT, Home, Setup, Told
from pawl.gpu.children import OwnFolder


class ReplicaFailed(Exception):
    """The process of a replica has ended, cannot be started, or is not what it should be; the message says why."""


class HostLost(ReplicaFailed):
    """Its host is lost, and another one, or the same again, may take its place."""


class Running(Protocol):
    """The process of a replica, on whichever host."""

    def heard(self) -> Told | None:
        """What it says next, before it serves; None: it has ended. Waits for it. Raises HostLost."""

    def wait(self, timeout_s: float | None = None) -> str | None:
        """Wait for its end: in words, how it ended; None where it has not within so long."""

    def kill(self) -> None:
        """Be gone at once, whatever it is at. May be called twice."""


class Host(Protocol):
    """A machine with replicas."""

    @property
    def name(self) -> str:
        """As people know it; empty: the host of the front."""

    @property
    def home(self) -> Home:
        """Which one it is."""

    def bind(self, process: str) -> SocketWire:
        """Wait for this process of the host."""

    def start(self, setup: Setup) -> Running:
        """Start the process of a replica. Raises HostLost."""


class Hosts(Protocol):
    """All machines with replicas."""

    @property
    def sockets(self) -> Sockets:
        """Those of the front."""

    def of(self, place: int, stopping: threading.Event) -> Host:
        """Where the replica at this place is to be. Waits until that host is there; raises ReplicaFailed when it does
        not come, or once it is `stopping`."""

    def beside(self, place: int, stopping: threading.Event) -> Sequence[Host]:
        """The other hosts that have ranks of that replica, in their order; waits and raises as `of`."""

    def release(self, place: int) -> None:
        """No replica is at this place any more, nor will be one for now."""

    def close(self) -> None:
        """All replicas have ended. May be called twice."""


class ThisHost:
    """The host of the front; links lie in a folder of mode 0700, each in one of its own."""

    name = ""

    def __init__(self, sockets: Sockets, peers_at: str | None = None, keys: str | None = None) -> None:
        """`peers_at`: where processes of other hosts find those of this one, with the keys in the folder `keys`."""
        self._sockets = sockets
        self._others = {"peers_at": peers_at, "keys": keys}
        self.home = Home(FRONT, host_and_port(peers_at)[0] if peers_at else None)
        self._folder = OwnFolder("links")

    def bind(self, process: str) -> SocketWire:
        (self._folder.path / process).mkdir()
        return self._sockets.bind(f"ipc://{self._folder.path}/{process}/link")

    def start(self, setup: Setup) -> Running:
        return Child(msgspec.structs.replace(setup, **self._others))

    def close(self) -> None:
        """All its processes have ended."""
        self._folder.close()


class OneHost:
    """`Hosts` where there is this one alone."""

    def __init__(self) -> None:
        self.sockets = Sockets()
        self._host = ThisHost(self.sockets)

    def of(self, place: int, stopping: threading.Event) -> Host:
        return self._host

    def beside(self, place: int, stopping: threading.Event) -> Sequence[Host]:
        return ()

    def release(self, place: int) -> None:
        """This host stays."""

    def close(self) -> None:
        self.sockets.close()
        self._host.close()
