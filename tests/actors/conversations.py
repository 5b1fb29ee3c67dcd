"""What two processes say to each other in random lives of their link: digests, kept in `conversations.txt`.

No sockets, no threads and no time but what a life says: messages in every lane and both ways, wires that take nothing
for a while, that lose, double and damage, actors that fail, end, are stopped, come up late and watch each other, clocks
that go on, processes that fall silent, hang up, leave and come back. A change of what is said, heard, counted or lost
shows. Where it is meant:

    python -m tests.actors.conversations         write conversations.txt
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.processes.frames import read
from pawl.actors.runtime.processes.system import ProcessSystem
from pawl.actors.runtime.receiver import Phase
from pawl.actors.simulation.quiet import silence
from tests.actors.conformance_base import (
    Crash,
    Draw,
    Journal,
    Parting,
    Persistent,
    Relay,
    Say,
    Scribe,
    SetTimers,
    Stray,
)
from tests.actors.memory_wires import MemoryWire, TwoProcesses
from tests.actors.test_codec import damage

FILE = Path(__file__).with_name("conversations.txt")
LIVES = 100
ACTS = 120
THERE = {"a": "b", "b": "a"}
NAMES = ("x", "y", "z", "late")


class NoDriver:
    """Of an actor that nobody runs by himself."""

    def start(self) -> None: ...


class Life(TwoProcesses):
    """One life of a link. Actors take their messages when it says so."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.told: list[object] = []
        self._random, self._journal = Random(f"conversation {seed}"), Journal()
        self._systems = {"a": self.a, "b": self.b}
        for system in self._systems.values():
            system._make_driver = lambda cell, loop: NoDriver()  # type: ignore[method-assign]
            system.start()
        overflow = self._random.choice(list(Overflow))
        self._spawn(self.a, Persistent(self._journal), "x")
        self._spawn(self.b, Scribe(self._journal), "y", capacity=self._random.choice((1, 3, 64)), overflow=overflow)
        self._spawn(self.b, Parting(self._journal, "x"), "z", capacity=4)
        self._meet()
        for watcher, watched in (("x", "y"), ("y", "x"), ("x", "z")):
            self._watch(watcher, watched)
        acts = [*self._acts()]
        for _ in range(ACTS):
            self._random.choices(acts, [weight for _, weight in acts])[0][0]()

    def _acts(self) -> Iterator[tuple[Callable[[], object], int]]:
        yield self._sends, 30
        yield self._carries, 40
        yield self._steps, 30
        yield self._passes, 6
        yield self._room, 4
        yield self._stops, 1
        yield self._comes_late, 1
        yield self._breaks, 1
        yield self._meet, 2

    def _spawn(self, system: ProcessSystem, actor: Scribe, name: str, **options: object) -> None:
        system.spawn(actor, name, **options)  # type: ignore[arg-type]
        cell = system.find(name)
        assert isinstance(cell, Cell)
        cell.begin()

    def _home(self, name: str) -> ProcessSystem:
        return self.a if isinstance(self.a.find(name), Cell) else self.b

    def _watch(self, watcher: str, watched: str) -> None:
        system = self._home(watcher)
        if system.find(watched) is not None and system.find(watcher) is not None:
            system.watch(watcher, watched)

    def _sends(self) -> None:
        """Somebody outside, to anybody it knows."""
        here, name, number = self._random.choice("ab"), self._random.choice(NAMES), self._random.randrange(9)
        lane = self._random.choice((Lane.DATA, Lane.DATA, Lane.CONTROL, Lane.SYSTEM))
        other = self._random.choice(NAMES[:3])
        message = self._random.choices(
            [Say(number), Relay(other, 1 + number % 4, lane=lane), Crash(number), Draw(), SetTimers((0.3,)), Stray()],
            (12, 20, 1, 2, 2, 1),
        )[0]
        if self._systems[here].find(name) is not None:
            self.told.append((here, name, self._systems[here].send(name, message, lane)))

    def _carries(self) -> None:
        """Some frames of one wire arrive, as a rule as they were sent."""
        here = self._random.choice("ab")
        wire, link = self.wires[here], self.wires[THERE[here]].link
        for _ in range(self._random.choice((1, 1, 3, 20))):
            if wire.sent and link is not None:
                frames = wire.sent.popleft()
                self.told.append((here, read(frames)[0], hashlib.blake2b(b"".join(frames), digest_size=4).digest()))
                fate = self._random.randrange(150)
                if fate == 1:
                    frames = damage(self._random, frames)
                for _ in range({0: 0, 2: 2}.get(fate, 1)):
                    link.receive(frames)
        for each in (wire.link, link):
            if each is not None:
                each.pump()
                self.told.append((each.num_waiting(), each.num_sent, each.num_received, each.met, each.closed))

    def _steps(self) -> None:
        """An actor handles some of what waits for it."""
        name = self._random.choice(NAMES)
        cell = self._home(name).find(name)
        if isinstance(cell, Cell):
            taken = [cell.step() for _ in range(self._random.randrange(1, 5)) if cell.phase is not Phase.ENDED]
            self.told.append((name, taken, cell.phase, cell.deadline(), list(cell.mailbox.depths())))

    def _passes(self) -> None:
        """Time, after which both ends look."""
        self.now += self._random.choice((0.01, 0.1, 0.5, 1.0, 1.0, 3.0, 6.0))
        for system in self._systems.values():
            for link in list(system.links.values()):
                self.told.append((round(link.tick() - self.now, 6), round(link.silent_s, 6)))

    def _room(self) -> None:
        """A wire takes no more than this."""
        self.wires[self._random.choice("ab")].room = self._random.choice((0, 1, 4, 1 << 30))

    def _stops(self) -> None:
        name, system = self._random.choice(NAMES), self._systems[self._random.choice("ab")]
        found = system.find(name)
        if found is not None:
            self._random.choice((lambda: found.ask_to_stop("enough"), found.cut, found.withdraw))()

    def _comes_late(self) -> None:
        if all(system.find("late") is None for system in self._systems.values()):
            self._spawn(self._systems[self._random.choice("ab")], Scribe(self._journal), "late")
        self._watch("late", self._random.choice("xy"))

    def _breaks(self) -> None:
        """Something ends the link, or is about to."""
        system = self._systems[self._random.choice("ab")]
        way, why = self._random.randrange(4), "it was to be"
        for link in list(system.links.values()):
            match way:
                case 0:
                    link.ends(why)
                case 1:
                    link.hung_up(why)
                case 2:
                    system.lost(link, why)
                case _:
                    system.leave(link.peer)

    def _meet(self) -> None:
        """Both connect where neither has a link any more."""
        if not (self.a.links or self.b.links):
            self.wires = {"a": MemoryWire(), "b": MemoryWire()}
            self.connect()

    def shown(self) -> str:
        """All of it, and how it has ended."""
        every = [self.told, self._journal.entries, self.lost, self.left]
        for system in self._systems.values():
            letters = [(each.to, each.sender, each.message, each.reason) for each in system.dead_letters.recent()]
            every += [letters, system.dead_letters.total, sorted(system.dead_letters.by_receiver.items())]
            every += [[(name, each) for name, each in sorted(system.statistics().items())]]
        return "\n".join(repr(part) for part in every)


def digests() -> dict[str, str]:
    """Of each life."""
    with silence():
        lives = [Life(seed).shown() for seed in range(LIVES)]
    return {str(seed): hashlib.blake2b(shown.encode(), digest_size=4).hexdigest() for seed, shown in enumerate(lives)}


def kept() -> dict[str, str]:
    """What `conversations.txt` holds."""
    return dict(line.split() for line in FILE.read_text().splitlines())


if __name__ == "__main__":
    FILE.write_text("".join(f"{seed} {digest}\n" for seed, digest in digests().items()))
