"""Systems of one process that talk over real ipc sockets, as one system: a front, and two replicas that have a link
with each other as well. Actors are dealt out in turn, every other one roams, and whoever sends from outside does so
from the system after the one in which the receiver lives."""

from __future__ import annotations

import itertools
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

NAMES = ("front", "one", "other")


def wait_for(condition: Callable[[], bool]) -> None:
    """Look again and again; raises AssertionError after a minute."""
    until = time.monotonic() + GENEROUS_S
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0)


class LinkedSystems:
    """A `System`."""

    def __init__(self, folder: Path, seed: int, **options: Any) -> None:
        self.sockets = Sockets()
        self.all = [ProcessSystem(Process(name, Codec), seed, **options) for name in NAMES]
        self.links: list[tuple[Link, Link]] = []
        """Both ends of each."""
        for number, (one, other) in enumerate(itertools.combinations(self.all, 2)):
            address = f"ipc://{folder}/{id(self)}.{number}"
            waits = one.connect(other.process.name, self.sockets.bind(address))
            self.links.append((waits, other.connect(one.process.name, self.sockets.join(address))))
        self.names: list[str] = []
        self.stopped: tuple[str, ...] | None = None
        wait_for(lambda: all(one.met and other.met for one, other in self.links))

    @property
    def dead_letters(self) -> DeadLetters:
        return max((system.dead_letters for system in self.all), key=lambda letters: letters.total)

    def home(self, name: str) -> ProcessSystem:
        """The system in which the actor lives."""
        return self.all[self.names.index(name) % len(NAMES)]

    def away(self, name: str) -> ProcessSystem:
        """The one after that."""
        return self.all[(self.names.index(name) + 1) % len(NAMES) if name in self.names else 0]

    def spawn(self, actor: Actor, name: str, *, capacity: int = 1024, overflow: Overflow = Overflow.REJECT) -> None:
        if name in self.names:
            raise ValueError(f"there is an actor {name!r} already")
        actor.roams = len(self.names) % 2 == 0
        self.all[len(self.names) % len(NAMES)].spawn(actor, name, capacity=capacity, overflow=overflow)
        self.names.append(name)
        wait_for(lambda: all(system.find(name) is not None for system in self.all))

    def watch(self, watcher: str, watched: str) -> None:
        self.home(watcher).watch(watcher, watched)
        self.settle()

    def start(self) -> None:
        self.settle()
        for system in self.all:
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
            not any(one.num_waiting() or other.num_waiting() for one, other in self.links)
            and self._nothing_on_the_way()
            and all(all(self._ended(name)) or not any(self._ended(name)) for name in self.names)
        )

    def _ended(self, name: str) -> list[bool]:
        """Whether each system knows that the actor has."""
        cells = [system.find(name) for system in self.all]
        return [cell is not None and cell.phase is Phase.ENDED for cell in cells]

    def _nothing_on_the_way(self) -> bool:
        return all(
            one.num_sent == other.num_received and other.num_sent == one.num_received for one, other in self.links
        )

    def stop(self, order: Sequence[str] = (), timeout_s: float = 30.0) -> tuple[str, ...]:
        if self.stopped is None:
            self.settle()
            whole = [*order, *(name for name in reversed(self.names) if name not in order)]
            front, *replicas = self.all
            late = front.stop(whole, timeout_s)
            for system in replicas:
                late += system.stop((), timeout_s)
            self.stopped = late
            self.sockets.close()
        return self.stopped

    def statistics(self) -> dict[str, ActorStatistics]:
        self.settle()
        return {name: self._statistics_of(name) for name in self.names}

    def _statistics_of(self, name: str) -> ActorStatistics:
        """What its own system says, with what was refused, or found no receiver, where it was sent."""
        each = [system.statistics()[name] for system in self.all]
        rejected, letters = sum(one.rejected for one in each), sum(one.dead_letters for one in each)
        here = self.home(name).statistics()[name]
        return msgspec.structs.replace(here, rejected=rejected, dead_letters=letters)
