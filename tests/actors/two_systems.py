"""Two systems of one process that talk over a real ipc socket, as one system: each second actor lives in the other one,
and whoever sends from outside does so from the system in which the receiver does not live."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from pawl.actors.runtime.actor import Actor, Lane, Overflow
from pawl.actors.runtime.codec import Codec
from pawl.actors.runtime.dead_letters import DeadLetters
from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.actors.runtime.receiver import Phase
from pawl.actors.runtime.system import ActorStatistics
from tests.actors.runtime_doing import GENEROUS_S

NAMES = ("left", "right")


def wait_for(condition: Callable[[], bool]) -> None:
    """Look again and again; raises AssertionError after a minute."""
    until = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0)


class TwoSystems:
    """A `System`."""

    def __init__(self, folder: Path, seed: int, **options: Any) -> None:
        self.sockets = Sockets()
        self.both = [ProcessSystem(Process(f"pawl-{name}", Codec), seed, **options) for name in NAMES]
        address = f"ipc://{folder}/{id(self)}"
        self.links: list[Link] = [
            self.both[0].connect("pawl-right", self.sockets.bind(address)),
            self.both[1].connect("pawl-left", self.sockets.join(address)),
        ]
        self.names: list[str] = []
        self.stopped: tuple[str, ...] | None = None
        wait_for(lambda: all(link.met for link in self.links))

    @property
    def dead_letters(self) -> DeadLetters:
        return max((system.dead_letters for system in self.both), key=lambda letters: letters.total)

    def home(self, name: str) -> ProcessSystem:
        """The system in which the actor lives."""
        return self.both[self.names.index(name) % 2]

    def away(self, name: str) -> ProcessSystem:
        """The other one."""
        return self.both[(self.names.index(name) + 1) % 2 if name in self.names else 0]

    def spawn(self, actor: Actor, name: str, *, capacity: int = 1024, overflow: Overflow = Overflow.REJECT) -> None:
        if name in self.names:
            raise ValueError(f"there is an actor {name!r} already")
        self.both[len(self.names) % 2].spawn(actor, name, capacity=capacity, overflow=overflow)
        self.names.append(name)
        wait_for(lambda: self.away(name).find(name) is not None)

    def watch(self, watcher: str, watched: str) -> None:
        self.home(watcher).watch(watcher, watched)
        self.settle()

    def start(self) -> None:
        self.settle()
        for system in self.both:
            system.start()

    def send(self, to: str, message: Any, lane: Lane = Lane.DATA) -> bool:
        self.settle()
        return self.away(to).send(to, message, lane)

    def settle(self) -> None:
        """Wait until everything has arrived that was sent so far, and each knows who has ended."""
        if self.stopped is None:
            wait_for(self._settled)

    def _settled(self) -> bool:
        return (
            not any(link.num_waiting() for link in self.links)
            and self._nothing_on_the_way()
            and all(self._phase(self.away(name), name) >= self._phase(self.home(name), name) for name in self.names)
        )

    @staticmethod
    def _phase(system: ProcessSystem, name: str) -> bool:
        cell = system.find(name)
        return cell is not None and cell.phase is Phase.ENDED

    def _nothing_on_the_way(self) -> bool:
        left, right = self.links
        return left.num_sent == right.num_received and right.num_sent == left.num_received

    def stop(self, order: Sequence[str] = (), timeout_s: float = 30.0) -> tuple[str, ...]:
        if self.stopped is None:
            self.settle()
            whole = [*order, *(name for name in reversed(self.names) if name not in order)]
            late = self.both[0].stop(whole, timeout_s)
            self.stopped = late + self.both[1].stop((), timeout_s)
            self.sockets.close()
        return self.stopped

    def statistics(self) -> dict[str, ActorStatistics]:
        self.settle()
        return {name: self._statistics_of(name) for name in self.names}

    def _statistics_of(self, name: str) -> ActorStatistics:
        """What its own system says, with what was refused, or found no receiver, where it was sent."""
        here, there = self.home(name).statistics()[name], self.away(name).statistics()[name]
        return msgspec.structs.replace(
            here, rejected=here.rejected + there.rejected, dead_letters=here.dead_letters + there.dead_letters
        )
