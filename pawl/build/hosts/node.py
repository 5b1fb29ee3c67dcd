"""A node as the head sees it: a host that others start processes on."""

from __future__ import annotations

import threading
from pathlib import Path
from queue import SimpleQueue
from typing import Protocol

import msgspec
import structlog

from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.wires import SocketWire
from pawl.build.hosts.host import HostLost, Running
from pawl.build.hosts.messages import Exited, Join, Said, Start, Started, Stop
from pawl.build.ready import Home, Setup, Told

log = structlog.get_logger("pawl.build.hosts")

END_S = 5.0
"""What a node may take to say that a process, which was killed, has ended."""


class Head(Protocol):
    """What a node needs of the head."""

    def bind(self) -> SocketWire:
        """Wait for a process on another host."""

    def tell(self, node: str, message: Start | Stop) -> bool:
        """Whether it is on its way to the node."""


class Node:
    """One that has a place, from its welcome to its loss (a `Host`)."""

    def __init__(
        self,
        head: Head,
        process: str,
        join: Join,
        address: str,
        num_here: int,
        threads: int | None,
        since: float,
    ) -> None:
        """`num_here` replicas share its `threads` out (`Layout.threads`)."""
        self.process = process
        self.join = join
        self.address = address
        """Where the head waits for its link."""
        self.name = f"{process} at {join.address}"
        self.home = Home(process, join.address)
        self.link: Link | None = None
        self.met = False
        """It has come."""
        self.since = since
        """When it was welcome, monotonic seconds."""
        self._head = head
        self._num_here, self._threads = num_here, threads
        self._lock = threading.Lock()
        self._running: dict[str, RemoteProcess] = {}
        self._lost: str | None = None

    def bind(self, process: str) -> SocketWire:
        return self._head.bind()

    def start(self, setup: Setup) -> Running:
        running = RemoteProcess(self, setup.process)
        with self._lock:
            if self._lost is not None:
                raise HostLost(f"{self.name}: {self._lost}")
            self._running[setup.process] = running
        self._head.tell(self.process, Start(_for_others(setup, self._threads), self._num_here))
        return running

    def stop(self, process: str) -> None:
        """End one at once."""
        self._head.tell(self.process, Stop(process))

    def hear(self, message: Started | Said | Exited) -> None:
        """It reports."""
        with self._lock:
            running = self._running.get(message.process)
            if isinstance(message, Exited):
                self._running.pop(message.process, None)
        if running is None:
            return
        match message:
            case Started(process, pid):
                log.info("a node has started a process", node=self.name, process=process, pid=pid)
            case Said(_, told):
                running.said(told)
            case Exited(_, how):
                running.ended(how)

    def lose(self, reason: str) -> None:
        """Its processes have ended with it."""
        with self._lock:
            self._lost = reason
            lost = list(self._running.values())
            self._running.clear()
        for running in lost:
            running.ended(f"{self.name} is lost: {reason}", host_lost=True)


def _for_others(setup: Setup, threads: int | None) -> Setup:
    """Without keys of clients, which are the front's business, and with the whole path of a model: a relative one names
    nothing on another host. Its threads are shared out there: of a replica here an outpost has a share of its own."""
    config = setup.config | {"api_key": None, "admin_api_key": None, "threads": threads}
    model = Path(config["model"]).expanduser()
    if model.exists():
        config["model"] = str(model.absolute())
    return msgspec.structs.replace(setup, config=config)


class RemoteProcess:
    """A process on a node (`Running`)."""

    def __init__(self, node: Node, process: str) -> None:
        self._node = node
        self._process = process
        self._told: SimpleQueue[Told | None] = SimpleQueue()
        self._how = ""
        self._host_lost = False
        self._over = threading.Event()

    def heard(self) -> Told | None:
        told = self._told.get()
        if told is None:
            self._told.put(None)
            if self._host_lost:
                raise HostLost(self._how)
        return told

    def wait(self, timeout_s: float | None = None) -> str | None:
        return self._how if self._over.wait(timeout_s) else None

    def kill(self) -> None:
        if not self._over.is_set():
            self._node.stop(self._process)
            self._over.wait(END_S)

    def said(self, told: Told) -> None:
        """The node has passed it on."""
        self._told.put(told)

    def ended(self, how: str, *, host_lost: bool = False) -> None:
        """The node has said so, or is lost itself."""
        self._how, self._host_lost = how, host_lost
        self._over.set()
        self._told.put(None)
