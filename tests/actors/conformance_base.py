"""What the conformance tests share: the messages, an actor that does as it is told, and a journal of what happened."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec

from pawl.actors.runtime.actor import Actor, Down, Lane, Timer
from pawl.actors.runtime.dead_letters import DeadLetter, Reason
from pawl.actors.runtime.system import System


class Say(msgspec.Struct, frozen=True, tag=True):
    """Written into the journal."""

    number: int
    speaker: str = ""


class Crash(msgspec.Struct, frozen=True, tag=True):
    """Makes its receiver raise, as long as the test wants it to."""

    number: int = 0


class Relay(msgspec.Struct, frozen=True, tag=True):
    """Send `count` numbered messages on."""

    to: str
    count: int = 1
    first: int = 0
    lane: Lane = Lane.DATA


class SetTimers(msgspec.Struct, frozen=True, tag=True):
    """One timer for each delay, in this order; each says its index."""

    delays_s: tuple[float, ...]


class CancelTimer(msgspec.Struct, frozen=True, tag=True):
    index: int


class Draw(msgspec.Struct, frozen=True, tag=True):
    """Write three random numbers into the journal."""


class Stray(msgspec.Struct, frozen=True, tag=True):
    """No actor here accepts it."""


Command: TypeAlias = Say | Crash | Relay | SetTimers | CancelTimer | Draw | Down


class Boom(Exception):
    """Raised by a handler on purpose."""


class Journal:
    """What happened, in the order in which it was written down; safe from any thread."""

    def __init__(self) -> None:
        self.entries: list[tuple[str, Any]] = []
        self.changed = threading.Condition()

    def note(self, who: str, what: Any) -> None:
        with self.changed:
            self.entries.append((who, what))
            self.changed.notify_all()

    def of(self, who: str) -> list[Any]:
        """All that `who` noted."""
        return [what for name, what in list(self.entries) if name == who]

    def numbers(self, who: str, speaker: str | None = None) -> list[int]:
        """The numbers of the `Say`s that `who` received (from `speaker`)."""
        said = [what for what in self.of(who) if isinstance(what, Say)]
        return [what.number for what in said if speaker is None or what.speaker == speaker]


class Scribe(Actor):
    """Does as it is told and writes down what it receives and what the runtime calls. `armed` decides whether a
    `Crash` goes off."""

    accepts: Any = Command

    def __init__(self, journal: Journal, armed: Callable[[Crash], bool] = lambda _: True) -> None:
        self.journal = journal
        self.armed = armed
        self.timers: list[Timer] = []

    def note(self, what: Any) -> None:
        self.journal.note(self.context.name, what)

    def started(self) -> None:
        self.note("started")

    def receive(self, message: Any) -> None:
        match message:
            case Say() | Down():
                self.note(message)
            case Crash():
                self.note(message)
                if self.armed(message):
                    raise Boom(f"crash {message.number}")
            case Relay():
                for number in range(message.first, message.first + message.count):
                    said = Say(number, self.context.name)
                    self.note("sent" if self.context.send(message.to, said, message.lane) else "refused")
            case SetTimers():
                for index, delay_s in enumerate(message.delays_s):
                    self.timers.append(self.context.after(delay_s, Say(index, "timer")))
            case CancelTimer():
                self.timers[message.index].cancel()
            case Draw():
                self.note([self.context.random.random() for _ in range(3)])

    def settled(self) -> None:
        self.note("settled")

    def stopped(self, reason: str) -> None:
        self.note(f"stopped: {reason}")


class Persistent(Scribe):
    """Has more to do the first two times that it settles; the first time it also sends itself a message."""

    left = 2

    def settled(self) -> bool:
        super().settled()
        if self.left == 2:
            self.context.send(self.context.name, Say(0))
        self.left -= 1
        return self.left >= 0


class Parting(Scribe):
    """Sends a last word when it is stopped."""

    def __init__(self, journal: Journal, to: str) -> None:
        super().__init__(journal)
        self.to = to

    def stopped(self, reason: str) -> None:
        super().stopped(reason)
        self.context.send(self.to, Say(99, self.context.name))


class Conformance:
    """What each group of conformance tests builds on. A subclass gives `make_system` and `run_until`."""

    journal: Journal

    def make_system(
        self,
        *,
        seed: int = 0,
        on_failure: Callable[[str, BaseException], None] | None = None,
        on_dead_letter: Callable[[DeadLetter], None] | None = None,
    ) -> System:
        """A system that was not started."""
        raise NotImplementedError

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Let the systems run until `condition` holds; raises AssertionError when that takes too long. It is enough
        to look whenever the journal changed."""
        raise NotImplementedError

    def setup_method(self) -> None:
        self.journal = Journal()
        self.systems: list[System] = []

    def teardown_method(self) -> None:
        for system in self.systems:
            assert system.stop(timeout_s=10.0) == ()

    def new_system(self, *, seed: int = 0) -> System:
        """A system whose failures and dead letters are in the journal."""
        system = self.make_system(
            seed=seed,
            on_failure=lambda name, error: self.journal.note("failures", (name, str(error))),
            on_dead_letter=lambda letter: self.journal.note("dead letters", letter),
        )
        self.systems.append(system)
        return system

    def scribe(self, armed: Callable[[Crash], bool] = lambda _: True) -> Scribe:
        return Scribe(self.journal, armed)

    def run_until_numbers(self, who: str, numbers: list[int]) -> None:
        """Wait for as many `Say`s, then compare."""
        self.run_until(lambda: len(self.journal.numbers(who)) >= len(numbers))
        assert self.journal.numbers(who) == numbers

    def reasons(self) -> list[Reason]:
        return [letter.reason for letter in self.journal.of("dead letters")]
