"""What the threads do that read the wires of a process, in random lives of one thread: digests, kept in `readings.txt`.

No sockets, no time, and a poller that a life speaks for: wires come, can be read or written, are full, are closed, hear
what nobody understands, wake actors that roam, whom a thread runs while the other one reads on, and are due. A change
of what is waited for and how long, of who is read, looked after or shut, or of who runs whom shows. Where it is meant:

    python -m tests.actors.readings         write readings.txt
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from pawl.actors.runtime.codec import Frame
from pawl.actors.runtime.drivers import visitor
from pawl.actors.runtime.processes import readers
from pawl.actors.runtime.processes.readers import Polling, Readers
from pawl.actors.runtime.processes.wires import SocketWire
from pawl.actors.simulation.quiet import silence

FILE = Path(__file__).with_name("readings.txt")
LIVES = 60
ROUNDS = 60
READ, WRITE, ONCE = 1, 4, 8


class Elsewhere(BaseException):
    """The thread that reads on is not looked at any longer."""


class Wire(SocketWire):
    """One that takes and brings what its life says."""

    def __init__(self, life: Reading, number: int) -> None:
        super().__init__(life.readers, f"wire {number}")
        self._life, self._number, self._ended = life, number, False

    def polled(self) -> list[tuple[Any, bool, bool]]:
        if self._ended:
            return []
        if self._life.once:
            return [(self._number, True, self.blocked)]
        return [(self._number, True, False), *([(-self._number, False, True)] if self.blocked else [])]

    def _send(self, frames: Sequence[Frame]) -> bool:
        if self._life.chance(0.5):
            self._block()
        return not self.blocked

    def _take(self, link: Any) -> None:
        self._life.told.append(("reads", self._number, visitor.may_run))
        self._hear(link, [b"frame"])
        if self._life.chance(0.1):
            visitor.stays()
        self._ended = self._life.chance(0.03)

    def _unblocked(self) -> bool:
        return self._life.chance(0.5)

    def shut(self) -> None:
        self._life.told.append(("shut", self._number, self._sending.locked(), self._linger_s))


class Reading:
    """One life. It is also the poller, the link of every wire, and the driver of every actor that they wake."""

    peer = "other"

    def __init__(self, seed: int) -> None:
        self.told: list[object] = []
        self._random, self._now, self._left, self._depth = Random(f"reading {seed}"), 0.0, ROUNDS, 0
        self._polled: dict[Any, int] = {}
        self._wires: list[Wire] = []
        self.once = ONCE * self.chance(0.7)
        self._per_s = self._random.choice((1.0, 1000.0))
        parts = SimpleNamespace(Lock=threading.Lock, Thread=self._thread)
        with patch.object(readers, "threading", parts):
            polling = Polling(self, READ, WRITE, self._per_s, self.once)
            self.readers = Readers(polling, lambda: self._now)
            self._run()
        self.readers.close()
        self.told.append((sorted(self._polled.values()), [wire.closed for wire in self._wires]))
        visitor.may_run, visitor.woken = False, None

    def chance(self, share: float) -> bool:
        """Whether something happens that happens so often."""
        return self._random.random() < share

    def _thread(self, target: Callable[[], None], name: str, daemon: bool) -> Any:
        self._run = target
        self.told.append((name, daemon))
        return SimpleNamespace(start=lambda: self.told.append("starts"), join=lambda: self.told.append("joined"))

    def _name(self, which: Any) -> Any:
        return "pipe" if which == self.readers._pipe else which

    # ---- as the poller ----

    def register(self, which: Any, flags: int) -> None:
        self.told.append(("waits for", self._name(which) if hasattr(self, "readers") else "pipe", flags))
        if which in self._polled:
            raise FileExistsError
        self._polled[which] = flags

    def unregister(self, which: Any) -> None:
        self.told.append(("no more", self._name(which)))
        del self._polled[which]

    def modify(self, which: Any, flags: int) -> None:
        self.told.append(("again", self._name(which), flags))
        self._polled[which] = flags

    def close(self) -> None:
        self.told.append("closed")

    def poll(self, timeout: float) -> list[tuple[Any, int]]:
        self.told.append(("polls", round(timeout, 6), self._depth))
        self._left -= 1
        if self._depth and self.chance(0.3):
            raise Elsewhere
        if self._left < 0:
            self.readers._closing = True
        for _ in range(self._random.choice((0, 1, 1, 2))):
            self._random.choices((self._comes, self._sends, self._closes, self.readers.wake), (3, 4, 1, 1))[0]()
        ready = [(which, flags) for which, flags in self._polled.items() if flags & (READ | WRITE) and self.chance(0.4)]
        if not ready:
            self._now += self._random.choice((0.3, 1.0, timeout / self._per_s))
        for which, flags in ready:
            if flags & ONCE:
                self._polled[which] = ONCE
        return ready

    # ---- what happens meanwhile ----

    def _comes(self) -> None:
        wire = Wire(self, len(self._wires) + 1001)
        self._wires.append(wire)
        wire.carry(self)  # type: ignore[arg-type]

    def _sends(self) -> None:
        if self._wires:
            wire = self._random.choice(self._wires)
            self.told.append((wire._number, wire.send([b"frame"]), wire.blocked))

    def _closes(self) -> None:
        if self._wires:
            self._random.choice(self._wires).close(self._random.choice((0.0, 1.0)))

    # ---- as the link, and as the driver of an actor ----

    def receive(self, frames: Sequence[Frame]) -> None:
        if self.chance(0.05):
            raise RuntimeError
        if self.chance(0.4):
            self.told.append(("takes", visitor.takes(self)))  # type: ignore[arg-type]

    def ends(self, reason: str) -> None:
        self.told.append(reason)

    def pump(self) -> None:
        self.told.append("pumps")

    def tick(self) -> float:
        self.told.append("ticks")
        return self._now + self._random.choice((0.0, 0.5, 2.0, 1e6))

    def go(self) -> None:
        self.told.append("goes on by itself")

    def visit(self) -> None:
        """While this thread runs an actor, the other one reads on."""
        self._depth += 1
        self.told.append(("visits", self._depth, self.readers._reading.locked()))
        try:
            if self._depth == 1:
                self._run()
        except Elsewhere:
            pass
        finally:
            self._depth -= 1


def digests() -> dict[str, str]:
    """Of each life."""
    with silence():
        lives = ["\n".join(map(repr, Reading(seed).told)) for seed in range(LIVES)]
    return {str(seed): hashlib.blake2b(shown.encode(), digest_size=4).hexdigest() for seed, shown in enumerate(lives)}


def kept() -> dict[str, str]:
    """What `readings.txt` holds."""
    return dict(line.split() for line in FILE.read_text().splitlines())


if __name__ == "__main__":
    FILE.write_text("".join(f"{seed} {digest}\n" for seed, digest in digests().items()))
