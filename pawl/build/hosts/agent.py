"""The agent of a node: joins the head, starts and watches the processes of its host for it, and nothing else.

When the head leaves, the node ends. When the head is gone, or cannot be reached, the processes of this host end, and
the node joins again; so it does after a partition, by when the head has forgotten what was here.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

import msgspec
import structlog

from pawl import __version__
from pawl.actors.runtime.actor import Actor, Lane
from pawl.actors.runtime.codec import Codec
from pawl.actors.runtime.processes.keys import Keys, read_keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.build.hosts.addresses import address_of, at_host_of, own_address
from pawl.build.hosts.child import Child
from pawl.build.hosts.door import ask, instance
from pawl.build.hosts.host import ReplicaFailed
from pawl.build.hosts.layout import threads_of
from pawl.build.hosts.messages import HEAD, Exited, Full, Join, Said, Start, Started, Stop, Unwanted, Welcome
from pawl.build.ready import Refused
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.children import TO_END

log = structlog.get_logger("pawl.build.hosts")

AGAIN_S = 1.0
"""How long a node waits before it asks once more."""
MEET_S = 15.0
"""What the link with the head may take, once the head has said where."""
END_S = 15.0
"""What the processes of this host may take to end; then they are killed."""
REMIND_S = 10.0
LEFT, ASKED = "the head has left", "asked to end"


class NodeRefused(ReplicaFailed):
    """The head is not there, or does not take this node; the message says why."""


class Head(NamedTuple):
    """The head, as this host knows it."""

    address: str
    """Where its door was found."""
    keys: Keys
    folder: str
    """Of the keys."""


class Agent(Actor):
    """`node.K`: the processes of this host."""

    accepts: Any = Start | Stop

    def __init__(self, head: Head, system: ProcessSystem) -> None:
        self._head = head
        self._system = system
        self._children: dict[str, Child] = {}
        self._lock = threading.Lock()
        """Guards the children: each is watched by a thread of its own."""

    def receive(self, message: Any) -> None:
        match message:
            case Start():
                self._start(message)
            case Stop(process):
                with self._lock:
                    child = self._children.get(process)
                if child is not None:
                    child.kill()

    def _start(self, start: Start) -> None:
        setup = start.setup
        try:
            config = msgspec.convert(setup.config, ServerConfig)
            own = msgspec.structs.replace(config, threads=threads_of(config, start.num_here))
            # An outpost has no link with the front, and finds others beside it.
            address = at_host_of(setup.address, self._head.address) if setup.address else self._head.address
            settings = msgspec.to_builtins(own)
            changed = msgspec.structs.replace(setup, config=settings, address=address, keys=self._head.folder)
            peers_at = address_of(own_address(self._head.address), 0)  # whichever port is free
            child = Child(msgspec.structs.replace(changed, peers_at=peers_at))
        except (ConfigError, OSError) as error:
            self._tell(Said(setup.process, Refused(str(error), usage=isinstance(error, ConfigError))))
            self._tell(Exited(setup.process, "refused"))
            return
        with self._lock:
            self._children[setup.process] = child
        self._tell(Started(setup.process, child.pid))
        threading.Thread(target=self._watch, args=(setup.process, child), name=setup.process, daemon=True).start()

    def _watch(self, process: str, child: Child) -> None:
        while (told := child.heard()) is not None:
            self._tell(Said(process, told))
        how = child.wait()
        assert how is not None
        with self._lock:
            del self._children[process]
        child.kill()
        log.info("a process has ended", process=process, how=how)
        self._tell(Exited(process, how))

    def _tell(self, message: Started | Said | Exited) -> None:
        self._system.send(HEAD, message, Lane.CONTROL)

    def end(self) -> None:
        """End all: each in order, as its parent is gone, or else by force."""
        with self._lock:
            children = list(self._children.values())
        for child in children:
            child.leave()
        until = time.monotonic() + END_S
        for child in children:
            if child.wait(max(0.0, until - time.monotonic())) is None:
                child.kill()


class Stay:
    """One stay with the head, from its welcome until one of both leaves."""

    def __init__(self, sockets: Sockets, head: Head, welcome: Welcome, ends: SimpleQueue[str]) -> None:
        met = threading.Event()
        process = Process(
            welcome.name,
            Codec,
            __version__,
            on_met=lambda _: met.set(),
            on_lost=lambda _, reason: ends.put(f"the head is lost: {reason}"),
            on_left=lambda _: ends.put(LEFT),
        )
        self._system = ProcessSystem(process, on_failure=lambda name, error: ends.put(f"{name} failed: {error!r}"))
        self._name = welcome.name
        self._agent = Agent(head, self._system)
        self._system.spawn(self._agent, welcome.name)
        self.address = at_host_of(welcome.address, head.address)
        self._system.connect(HEAD, sockets.join(self.address, head.keys))
        self._system.start()
        self.met = met.wait(MEET_S)

    def end(self) -> None:
        """Say goodbye, so that nothing is started here any more, and end the processes of this host."""
        self._system.stop((self._name,))
        self._agent.end()


def serve(address: str, folder: Path, timeout_s: float, place: int | None = None, role: str | None = None) -> int:
    """Be a node of the head at this address, with the keys in `folder`, until it leaves or a signal says so: 0.
    `place`: which one, where the head has had it started for one; `role`: of the replicas that it is for. Raises
    KeysUnusable; NodeRefused when nobody answers for `timeout_s` seconds, or the head does not want this node; OSError
    for an address that cannot be."""
    head = Head(address, read_keys(folder), str(folder.absolute()))
    ends: SimpleQueue[str] = SimpleQueue()
    with _told_by_signals(ends):
        while True:
            sockets = Sockets()
            try:
                welcome = _welcome(sockets, head, timeout_s, ends, place, role)
                why = ASKED if welcome is None else _stay(sockets, head, welcome, ends)
            finally:
                sockets.close()
            if why in (LEFT, ASKED):
                log.info("the node ends", why=why)
                return 0
            log.error("the node joins again", why=why)


@contextmanager
def _told_by_signals(ends: SimpleQueue[str]) -> Iterator[None]:
    """A signal to end says so."""
    before = {number: signal.signal(number, lambda *_: ends.put(ASKED)) for number in TO_END}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stay(sockets: Sockets, head: Head, welcome: Welcome, ends: SimpleQueue[str]) -> str:
    """Until it is over: why."""
    stay = Stay(sockets, head, welcome, ends)
    try:
        if not stay.met:
            return f"the head answers at {head.address}, not at {stay.address} and the port behind it: are they open?"
        log.info("the node has joined", name=welcome.name, head=head.address)
        return ends.get()
    finally:
        stay.end()
        _forget_all_but_signals(ends)


def _forget_all_but_signals(ends: SimpleQueue[str]) -> None:
    """What was said of a stay that is over."""
    said = []
    while not ends.empty():
        said.append(ends.get())
    if ASKED in said:
        ends.put(ASKED)


def _welcome(
    sockets: Sockets, head: Head, timeout_s: float, ends: SimpleQueue[str], place: int | None, role: str | None
) -> Welcome | None:
    """Ask until there is a place; None: a signal came first."""
    mine = instance()
    until, remind_at = time.monotonic() + timeout_s, 0.0
    while True:
        answer, state = None, f"nobody with these keys answers at {head.address}"
        try:
            join = Join(__version__, mine, own_address(head.address), place, role)
            answer = ask(sockets, head.address, head.keys, join)
        except OSError as error:  # no network, or no such name: for now
            state = f"{head.address}: {error.strerror}"
        match answer:
            case Welcome() as welcome:
                return welcome
            case Unwanted(reason):
                raise NodeRefused(reason)
            case Full():
                # It is wanted as soon as another one is lost.
                which = "all its nodes" if role is None else f"all its nodes for {role}"
                state, until = f"the head at {head.address} has {which}", time.monotonic() + timeout_s
        now = time.monotonic()
        if now >= until:
            raise NodeRefused(f"{state}, for {timeout_s:g} s")
        if now >= remind_at:
            remind_at = now + REMIND_S
            log.info("the node waits", why=state)
        try:
            if ends.get(timeout=AGAIN_S) == ASKED:
                return None
        except Empty:
            pass
