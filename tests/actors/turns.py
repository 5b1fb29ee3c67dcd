"""What runs actors, in random lives of one thread: digests, kept in `turns.txt`.

An event loop turns when a life says so, and its clock goes on while it is looked at; where an actor's own thread waits,
its life goes on: messages come, from visitors that stay or run whom they have woken, at any moment between the parking
and the wait and between the end of a wait and the look at the mailbox; time passes, timers come due, handlers break off
what runs them, loops close, and in the end all is stopped, as far as it ends in time. A change of what is asked of a
loop, of how long a thread waits, of who runs an actor, or of what it hears and in which order shows. Where it is meant:

    python -m tests.actors.turns         write turns.txt
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from pawl.actors.runtime import drivers
from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.runtime.cell import Cell
from pawl.actors.runtime.drivers import SLICE_S, ThreadDriver, visitor
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.runtime.mailbox import Mailbox
from pawl.actors.runtime.receiver import Phase
from pawl.actors.simulation.quiet import silence
from tests.actors.conformance_base import (
    Boom,
    CancelTimer,
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

FILE = Path(__file__).with_name("turns.txt")
LIVES = 60
ACTS = 120
LEFT = 200
"""Acts after the last one in which all must have ended."""


class Snapped(BaseException):
    """What no handler is meant to survive."""


class Louder(Say, frozen=True, tag=True):
    """Is accepted where its kind is."""


class Brittle(Persistent):
    """Breaks off what runs it when it is told a certain number. It may survive its failures, fail at that as well, and
    fail when it begins, settles or ends."""

    def __init__(self, journal: Journal, random: Random) -> None:
        super().__init__(journal)
        self._random = random

    def _fails(self, share: float) -> None:
        if self._random.random() < share:
            raise Boom(f"{share}")

    def started(self) -> None:
        super().started()
        if self._random.random() < 0.7:
            self.timers.append(self.context.after(self._random.choice((0.0, 0.4)), Say(5, "begun")))
        self._fails(0.03)

    def receive(self, message: Any) -> None:
        super().receive(message)
        if message == Say(13):
            raise Snapped

    def spares(self, message: Any, error: Exception) -> bool:
        self.note(("fails at", message, str(error)))
        self.told_of(error)
        self._fails(0.1)
        return self._random.random() < 0.8

    def settled(self) -> bool:
        self._fails(0.01)
        return super().settled()

    def stopped(self, reason: str) -> None:
        super().stopped(reason)
        self.note((type(self.failure), self.context.wall(), self.num_contained))
        self._fails(0.2)


class Life:
    """Of one system: what all have in common."""

    def __init__(self, seed: str) -> None:
        self.now, self.told = 0.0, list[object]()
        self._random, self._journal = Random(seed), Journal()
        self._system = LocalSystem(
            len(seed),
            clock=lambda: self.now,
            wall=lambda: self.now,
            on_failure=lambda name, error: self.told.append((name, str(error))),
        )

    def _message(self, timers: int) -> object:
        number, after_s = self._random.randrange(9), self._random.choice((0.0, 0.001, 0.5, 2.0))
        some = [
            (Say(number), 20),
            (Relay(self._random.choice((*"xyz", "nobody")), 1 + number % 4, lane=self._random.choice(list(Lane))), 10),
            (Louder(number), 3),
            (SetTimers((after_s, 1.0)[: 1 + number % 2]), 8),
            (Draw(), 2),
            (Stray(), 1),
            (Crash(number), 0.2),
            (Say(13), 0.05),
        ]
        if timers:
            some.append((CancelTimer(number % timers), 6))
        return self._random.choices([each for each, _ in some], [weight for _, weight in some])[0]

    def _lane(self) -> Lane:
        return self._random.choice((Lane.DATA, Lane.DATA, Lane.CONTROL, Lane.SYSTEM))

    def _passes(self) -> None:
        self.now += self._random.choice((0.0005, 0.01, 0.3, 0.5, 1.0))

    def shown(self) -> str:
        """All of it, and how it has ended."""
        letters = [(each.to, each.sender, each.message, each.reason) for each in self._system.dead_letters.recent()]
        statistics = sorted(self._system.statistics().items())
        return "\n".join(repr(part) for part in (self.told, self._journal.entries, letters, statistics))


class Alarm:
    """What a loop is to do later."""

    def __init__(self, told: list[object], due: float, callback: Callable[[], object]) -> None:
        self.due, self.callback, self._told, self.wanted = due, callback, told, True

    def cancel(self) -> None:
        self._told.append("not that")
        self.wanted = False


class OnLoop(Life):
    """Three actors on one event loop, which this is as well."""

    def __init__(self, seed: int) -> None:
        super().__init__(f"on a loop {seed}")
        self._ready, self._alarms = deque[Callable[[], object]](), list[Alarm]()
        self._closed, self._tick_s = False, 0.0
        overflow = self._random.choice(list(Overflow))
        self._actors = [Brittle(self._journal, self._random), Scribe(self._journal), Parting(self._journal, "x")]
        for name, actor, capacity in zip("xyz", self._actors, (200, self._random.choice((1, 3, 64)), 4), strict=True):
            self._system.spawn(actor, name, capacity=capacity, overflow=overflow, loop=self)  # type: ignore[arg-type]
        for watcher, watched in ("xy", "yx", "xz"):
            self._system.watch(watcher, watched)
        acts = [(self._sends, 30), (self._turns, 40), (self._waits, 20), (self._beside, 6), (self._ticks, 3)]
        acts += [(self._closes, 0.1), (self._retires, 0.3)]
        begins = self._random.randrange(10) if self._random.random() < 0.9 else ACTS
        for at in range(ACTS):
            if at == begins:
                self._system.start()
            self._random.choices([act for act, _ in acts], [weight for _, weight in acts])[0]()
        self._ends()

    # ---- as the drivers see it ----

    def time(self) -> float:
        self.now += self._tick_s
        return self.now

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.told.append("soon")
        self._ready.append(callback)

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        self.told.append("from elsewhere")
        self._ready.append(callback)

    def call_later(self, delay_s: float, callback: Callable[[], object]) -> Alarm:
        self.told.append(("later", round(delay_s, 6)))
        self._alarms.append(Alarm(self.told, self.now + delay_s, callback))
        return self._alarms[-1]

    # ---- what happens ----

    def _sends(self) -> None:
        at = self._random.randrange(3)
        for _ in range(self._random.choice((1, 1, 1, 1, 1, 1, 1, 80))):
            message = self._message(len(self._actors[at].timers))
            self.told.append(self._system.send("xyz"[at], message, self._lane()))

    def _turns(self) -> None:
        for _ in range(self._random.choice((1, 1, 2, 5))):
            if self._ready:
                self._calls(self._ready.popleft())

    def _calls(self, callback: Callable[[], object]) -> None:
        try:
            callback()
        except Snapped:
            self.told.append("snapped")
        cells = [(cell.mailbox.depths(), cell.deadline(), [*cell.timed()]) for cell in self._cells()]
        self.told.append((round(self.now, 6), cells))

    def _cells(self) -> list[Cell]:
        return [cell for cell in self._system._cells.values() if isinstance(cell, Cell)]

    def _waits(self) -> None:
        """Time passes, and what is due by then is done."""
        self._passes()
        due = [alarm for alarm in self._alarms if alarm.due <= self.now]
        self._alarms = [alarm for alarm in self._alarms if alarm.due > self.now]
        for alarm in sorted(due, key=lambda alarm: alarm.due):
            if alarm.wanted:
                self._calls(alarm.callback)

    def _beside(self) -> None:
        """A coroutine uses the context of an actor between its turns."""
        at = self._random.randrange(3)
        if self._cells()[at].phase is Phase.RUNNING:
            timer = self._actors[at].context.after(self._random.choice((0.0, 0.4, 3.0)), Say(at, "beside"))
            self._actors[at].timers.append(timer)

    def _ticks(self) -> None:
        self._tick_s = self._random.choice((0.0, 0.0001, 0.001, SLICE_S, 0.0021))

    def _closes(self) -> None:
        self._closed = True

    def _retires(self) -> None:
        self._cells()[2].ask_to_stop("retired")

    def _ends(self) -> None:
        """All are stopped; who does not end in time is cut off."""
        for cell, until in self._system._stop_in_order(self._random.choice((("y",), ("z", "nobody", "x"))), 5.0):
            self.told.append((cell.name, round(until - self.now, 6)))
            for _ in range(self._random.choice((0, 3, 40))):
                self._waits()
                self._turns()
        self.told.append(self._system._not_stopped)


class Gate:
    """Where an actor's own thread waits: its life goes on meanwhile."""

    def __init__(self, life: InThread) -> None:
        self._life, self._open = life, True

    def acquire(self, timeout: float = -1.0) -> bool:
        life = self._life
        life.told.append(("waits", round(timeout, 6), self._open))
        until = life.now + timeout
        while not self._open:
            if timeout >= 0 and until <= life.now:
                return False
            life.goes_on()
        self._open = False
        return True

    def release(self) -> None:
        self._life.told.append("goes on")
        assert not self._open, "it was let through before"
        self._open = True


class Struck(Mailbox):
    """Others come as its reader has parked, and as it has waited long enough."""

    life: InThread

    def park(self) -> bool:
        parked = super().park()
        self.life.told.append(("parks", parked))
        if parked:
            self.life.strikes()
        return parked

    def unpark(self) -> bool:
        self.life.strikes()
        was_parked = super().unpark()
        self.life.told.append(("was parked", was_parked))
        return was_parked


class InThread(Life):
    """One actor with a thread of its own; as a rule it roams."""

    def __init__(self, seed: int) -> None:
        super().__init__(f"in a thread {seed}")
        self._depth, self._left, self._woken = 0, ACTS, None
        self._actor = Brittle(self._journal, self._random)
        self._actor.roams = self._random.random() < 0.8
        self._system._make_cell = self._make_cell  # type: ignore[method-assign]
        parts = SimpleNamespace(
            Lock=lambda: Gate(self),
            Thread=self._thread,
            get_ident=threading.get_ident,
            TIMEOUT_MAX=self._random.choice((1.5, threading.TIMEOUT_MAX)),
        )
        with patch.object(drivers, "threading", parts):
            self._system.spawn(self._actor, "x", capacity=self._random.choice((2, 64)))
            self._driver = self._system._drivers["x"]
            assert isinstance(self._driver, ThreadDriver)
            self._sends()
            self._system.start()
            self._tries(self._run)
            while self._woken is not None:  # by somebody who comes too late
                self._visits()
        visitor.may_run, visitor.woken = False, None

    def _make_cell(self, actor: Scribe, name: str, capacity: int, overflow: Overflow) -> Cell:  # type: ignore[override]
        mailbox = Struck(capacity, overflow)
        mailbox.life = self
        return Cell(self._system, actor, name, mailbox, 7)

    def _thread(self, target: Callable[[], None], name: str, daemon: bool) -> Any:
        self._run = target
        return SimpleNamespace(start=lambda: self.told.append((name, daemon)))

    @property
    def _cell(self) -> Cell:
        cell = self._system._cells["x"]
        assert isinstance(cell, Cell)
        return cell

    def _tries(self, run: Callable[[], object]) -> None:
        try:
            run()
        except Snapped:
            self.told.append("snapped")
        self.told.append((self._cell.phase, self._cell.owner is None, list(self._cell.mailbox.depths())))

    # ---- what happens while the thread waits ----

    def goes_on(self) -> None:
        """One thing happens."""
        self._left -= 1
        assert self._left > -LEFT, "it waits for ever"
        if self._left > 0:
            acts: tuple[Callable[[], object], ...] = (self._sends, self._brings, self._passes, self._visits)
            self._random.choices((*acts, self._cuts), (10, 20, 20, 20, 0.1))[0]()
        elif self._woken is not None:
            self._visits()
        else:
            self._passes()
            self._cell.ask_to_stop("enough")

    def strikes(self) -> None:
        """Somebody comes at a bad moment, or nobody."""
        if self._left > 0 and self._depth < 3 and self._random.random() < 0.4:
            self._left -= 1
            self._depth += 1
            self._random.choice((self._sends, self._brings, self._visits))()
            self._depth -= 1

    def _sends(self) -> None:
        for _ in range(self._random.choice((1, 1, 1, 1, 1, 20))):
            self.told.append(self._system.send("x", self._message(len(self._actor.timers)), self._lane()))

    def _brings(self) -> None:
        """A visitor comes, who stays or leaves; with somebody to run at the most."""
        visitor.may_run = self._random.random() < 0.9
        self._sends()
        if self._random.random() < 0.3:
            visitor.stays()
        if (woken := visitor.leave()) is not None:
            assert self._woken is None, "two run it"
            self._woken = woken
        self.told.append(("woken", woken is not None, visitor.may_run, visitor.woken is None))

    def _visits(self) -> None:
        """Who has been woken is run."""
        woken, self._woken = self._woken, None
        if woken is not None:
            self.told.append("visits")
            self._tries(woken.visit)

    def _cuts(self) -> None:
        self._cell.cut()


def digests() -> dict[str, str]:
    """Of each life."""
    with silence():
        lives = {f"{kind.__name__}.{seed}": kind(seed).shown() for kind in (OnLoop, InThread) for seed in range(LIVES)}
    return {name: hashlib.blake2b(shown.encode(), digest_size=4).hexdigest() for name, shown in lives.items()}


def kept() -> dict[str, str]:
    """What `turns.txt` holds."""
    return dict(line.split() for line in FILE.read_text().splitlines())


if __name__ == "__main__":
    FILE.write_text("".join(f"{name} {digest}\n" for name, digest in digests().items()))
