"""The head: waits for nodes, gives each a place, and has replicas started there.

    node ── Join ──► door                                one port; whoever lacks the keys is not heard
         ◄─ Welcome(node.K, address) ──
    node.K ═══ link ═══ head                             Start, Stop ─►   ◄─ Started, Said, Exited
    replica of that node ═══ link ═══ front              as replicas of this host have one

Its system is not that of the engine, which it outlives.
"""

from __future__ import annotations

import atexit
import itertools
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import structlog

from pawl import __version__
from pawl.actors.names import DECODE, PREFILL
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.codec import Codec
from pawl.actors.runtime.processes.keys import Keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.actors.runtime.processes.wires import SocketWire
from pawl.build.hosts.addresses import host_and_port, resolved
from pawl.build.hosts.door import Door
from pawl.build.hosts.host import Host, ReplicaFailed, ThisHost
from pawl.build.hosts.layout import Layout
from pawl.build.hosts.messages import HEAD, Answer, Exited, Full, Join, Said, Start, Started, Stop, Unwanted, Welcome
from pawl.build.hosts.node import Node

log = structlog.get_logger("pawl.build.hosts")

MEET_S = 20.0
"""What a node that was welcome may take to come."""
SILENT_S = 3.0
"""Three heartbeats. An agent of which nothing is heard for so long gives way to another one of its host."""
REMIND_S = 30.0
"""How often it is said whom the head waits for."""
LOOK_S = 1.0
"""How often whoever waits for a node looks whether it is still wanted."""
STOP_S = 5.0


class NodesMissing(ReplicaFailed):
    """Not all nodes came in time."""


class Reports(Actor):
    """What nodes say of their processes."""

    accepts: Any = Started | Said | Exited

    def __init__(self, head: NodeHosts) -> None:
        self._head = head

    def receive(self, message: Any) -> None:
        self._head.reported(message)


class NodeHosts:
    """`Hosts` where replicas live on several. It is told of nodes by the threads of links and of the door."""

    def __init__(self, layout: Layout, listen: str, keys: Keys, keys_folder: str, timeout_s: float) -> None:
        """Nodes may come from now on. Raises OSError where the address cannot be had."""
        self.sockets = Sockets()
        self._layout = layout
        self._keys = keys
        self._keys_folder = keys_folder
        self._host = resolved(listen).rpartition(":")[0]
        self._this = ThisHost(self.sockets, f"{self._host}:0", keys_folder)
        self._places: list[Node | None] = [None] * layout.num_joined
        """By number of the node, less that of the head."""
        self._until: float | None = time.monotonic() + timeout_s
        """When the head gives up waiting; None once all nodes have been there."""
        self._timeout_s = timeout_s
        self._said_at = 0.0
        self._numbers = itertools.count(1)
        self._changed = threading.Condition()
        self._closed = False
        process = Process(
            HEAD,
            Codec,
            __version__,
            on_met=self._met,
            on_lost=self._lost,
            on_left=lambda name: self._lost(name, "it has left"),
        )
        self._system = ProcessSystem(process)
        self._system.spawn(Reports(self), HEAD)
        self._system.start()
        try:
            self._door = Door(self.sockets, listen, keys, self._answer, self._look)
        except BaseException:
            self._system.stop((HEAD,))
            self.sockets.close()
            raise
        self.address = listen if host_and_port(listen)[1] else self._door.address
        """Where nodes find it."""
        self._advice = f"on each other host: pawl node --join {self.address} --keys {keys_folder}"
        atexit.register(self.close)

    # ---- for the engine ----

    def of(self, place: int, stopping: threading.Event) -> Host:
        return self._node(self._layout.node_of(place), stopping)

    def beside(self, place: int, stopping: threading.Event) -> Sequence[Host]:
        first = self._layout.node_of(place)
        return [self._node(first + more, stopping) for more in range(1, self._layout.hosts_each)]

    def _node(self, number: int, stopping: threading.Event) -> Host:
        """The one of this number, once it is there."""
        number -= self._layout.head_serves
        if number < 0:
            return self._this
        with self._changed:
            while not stopping.is_set():
                node = self._places[number]
                if node is not None and node.met:
                    return node
                if self._until is not None and time.monotonic() >= self._until:
                    raise NodesMissing(f"{self._state()} after {self._timeout_s:g} s; {self._advice}")
                self._changed.wait(LOOK_S)
        raise ReplicaFailed("the server ends")

    def release(self, place: int) -> None:
        """Its host stays, for the next one."""

    def close(self) -> None:
        atexit.unregister(self.close)
        with self._changed:
            if self._closed:
                return
            self._closed = True
        self._door.close()
        self._system.stop((HEAD,), STOP_S)
        self.sockets.close()
        self._this.close()

    # ---- for nodes ----

    def bind(self) -> SocketWire:
        return self.sockets.bind(f"{self._host}:0", self._keys)

    def tell(self, node: str, message: Start | Stop) -> bool:
        return self._system.send(node, message, Lane.CONTROL)

    def reported(self, message: Started | Said | Exited) -> None:
        """Some node says this of a process of it; no other one has a process of this name."""
        for node in list(self._places):
            if node is not None:
                node.hear(message)

    # ---- nodes that come and go ----

    def _answer(self, join: Join) -> Answer:
        if join.version != __version__:
            return Unwanted(f"the head is Pawl {__version__}, and this node {join.version}")
        if reason := self._layout.unwanted(join.role):
            return Unwanted(reason)
        self._forget_before(join)
        with self._changed:
            for node in self._places:
                if node is not None and node.join.instance == join.instance:
                    return Welcome(node.process, node.address)
            number = self._number_for(join)
            if self._closed or number is None:
                return Full()
            process = f"node.{next(self._numbers)}"
            wire = self.bind()
            num_here = self._layout.joined[number].size
            threads = self._layout.threads
            node = Node(self, process, join, wire.address, num_here, threads, time.monotonic())
            self._places[number] = node
        node.link = self._system.connect(process, wire)
        return Welcome(process, wire.address)

    def _number_for(self, join: Join) -> int | None:
        """A place that is free, and that this node is for; None: there is none."""
        places = enumerate(zip(self._places, self._layout.joined_roles, strict=True))
        free = (number for number, (node, role) in places if node is None and join.role in (None, role))
        return next((number for number in free if join.place in (None, number)), None)

    def _is_wanted(self, number: int) -> bool:
        """Whether a node is to be at this place."""
        return True

    def _forget_before(self, join: Join) -> None:
        """An agent that is started again comes from the host of the one before, of which nothing is heard."""
        for node in self._places:
            same = node and node.join.as_before(join)
            if node and node.met and same and node.link and node.link.silent_s >= SILENT_S:
                self._system.lost(node.link, "another one has come from its host")

    def _met(self, process: str) -> None:
        node = self._named(process)
        if node is None:
            return
        with self._changed:
            node.met = True
            if self._num_there() == self._layout.num_nodes:
                self._until = None
            self._changed.notify_all()
        log.info("a node has joined", node=node.name, nodes=self._state())

    def _lost(self, process: str, reason: str) -> None:
        node = self._named(process)
        if node is None:
            return
        with self._changed:
            number = self._places.index(node)
            self._places[number] = None
            self._said_at = 0.0
        if not self._closed and self._is_wanted(number):
            log.error("a node is lost; its replicas wait for one in its place", node=node.name, reason=reason)
        node.lose(reason)

    def _named(self, process: str) -> Node | None:
        return next((node for node in self._places if node is not None and node.process == process), None)

    def _look(self) -> None:
        """Every now and then: say whom the head waits for, and forget who was welcome and did not come."""
        now = time.monotonic()
        late = [node for node in self._places if node and not node.met and node.link and now >= node.since + MEET_S]
        for node in late:
            assert node.link is not None
            self._system.lost(node.link, "it was welcome and did not come")
        if self._num_there() < self._num_wanted() and now >= self._said_at + REMIND_S:
            self._said_at = now
            log.info("waiting for nodes", nodes=self._state(), advice=self._advice)

    def _num_wanted(self) -> int:
        return self._layout.head_serves + sum(self._is_wanted(number) for number in range(len(self._places)))

    def _num_there(self) -> int:
        return self._layout.head_serves + sum(node is not None and node.met for node in self._places)

    def _state(self) -> str:
        there = ["this host"] if self._layout.head_serves else []
        there += [node.name for node in self._places if node is not None and node.met]
        places = zip(self._places, self._layout.joined_roles, strict=True)
        missing = Counter(role for node, role in places if node is None or not node.met)
        wanted = "".join(f"; {missing[role]} for {role} missing" for role in (PREFILL, DECODE) if missing[role])
        return f"{len(there)} of {self._num_wanted()} nodes are there ({', '.join(there) or 'none'}){wanted}"
