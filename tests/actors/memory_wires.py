"""Wires that carry frames when a test says so, and a clock that it sets: for links without sockets or time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pawl.actors.runtime.actor import Actor
from pawl.actors.runtime.codec import Codec, Frame
from pawl.actors.runtime.processes.ends import Heartbeat
from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.system import Process, ProcessSystem


class MemoryWire:
    """One end of a wire: what is sent waits in `sent`. `room` is how much of it a socket would take."""

    def __init__(self) -> None:
        self.link: Link | None = None
        self.sent: deque[list[bytes]] = deque()
        self.room = 1 << 30
        self.closed = False
        self.woken = 0

    def carry(self, link: Link) -> None:
        self.link = link

    def send(self, frames: Sequence[Frame]) -> bool:
        if len(self.sent) >= self.room or self.closed:
            return False
        self.sent.append([bytes(frame) for frame in frames])
        return True

    def wake(self) -> None:
        self.woken += 1

    def close(self, linger_s: float) -> None:
        self.closed = True


class TwoProcesses:
    """The systems "a" and "b", which were not started, and the wires between them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lost: list[tuple[str, str]] = []
        self.left: list[str] = []
        self.a, self.b = self.system("a"), self.system("b")
        self.wires = {"a": MemoryWire(), "b": MemoryWire()}

    def system(self, name: str) -> ProcessSystem:
        process = Process(
            name,
            Codec,
            heartbeat=Heartbeat(1.0, 10.0),
            on_lost=lambda peer, reason: self.lost.append((peer, reason)),
            on_left=self.left.append,
        )
        return ProcessSystem(process, clock=lambda: self.now)

    def connect(self) -> TwoProcesses:
        """Let both say Hello."""
        self.a.connect("b", self.wires["a"])
        self.b.connect("a", self.wires["b"])
        return self.deliver()

    def spawn(self, system: ProcessSystem, actor: Actor, name: str, **options: Any) -> None:
        system.spawn(actor, name, **options)
        self.deliver()

    def deliver(self, change: Callable[[list[bytes]], list[list[bytes]]] = lambda frames: [frames]) -> TwoProcesses:
        """Carry all that was sent, and all that is sent because of it; `change` says what becomes of each."""
        while any(wire.sent for wire in self.wires.values()):
            for here, there in (("a", "b"), ("b", "a")):
                while self.wires[here].sent:
                    link = self.wires[there].link
                    assert link is not None
                    for frames in change(self.wires[here].sent.popleft()):
                        link.receive(frames)
                link = self.wires[here].link
                assert link is not None
                link.pump()
        return self

    def stop(self) -> None:
        for system in (self.a, self.b):
            for link in list(system.links.values()):
                system.lost(link, "the test is over")
            assert system.stop(timeout_s=10.0) == ()
