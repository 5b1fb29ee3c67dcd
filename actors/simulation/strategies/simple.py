"""The base of all strategies, and the two simplest: always the fair choice, and a random walk."""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence

from pawl.actors.simulation.choice import CLOCK, Choices, Guide, Kind, Option, count_plain

FAULT_RATE = 0.02
"""Chance of a fault at a decision where one may strike: rare enough that the work gets somewhere between them."""
RARE_FACTOR = 5.0
"""So many times more often where nothing but the clock can go on, and inside of handlers that ask: there are few such
decisions in a run."""


class Strategy:
    """Decides many schedules, one after another."""

    name = "strategy"
    wants_states = False
    """Whether `reached` wants to know the state after each step."""

    complete = False
    """Whether it ends, and has then run every schedule there is."""

    def begin(self) -> bool:
        """A new schedule begins. False: this strategy has no further one."""
        return True

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        """See `ChoiceSource`."""
        raise NotImplementedError

    def reached(self, state: Hashable) -> None:
        """The state after a step; only called when `wants_states`."""

    def ended(self, choices: Choices) -> None:
        """The schedule is over; this is what was decided."""


class Fair(Strategy):
    """Oldest first, nobody is interrupted, no faults: one schedule."""

    name = "fair"

    def __init__(self) -> None:
        self._was_run = False

    def begin(self) -> bool:
        was_run, self._was_run = self._was_run, True
        return not was_run

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        return 0


class Guided(Strategy):
    """First the schedule of a run of something larger, as far as it goes, then those of another strategy."""

    def __init__(self, labels: Sequence[str], others: Strategy) -> None:
        self.name, self.wants_states = others.name, others.wants_states
        self._guide: Guide | None = None
        self._labels: Sequence[str] | None = labels
        self._others = others

    def begin(self) -> bool:
        labels, self._labels = self._labels, None
        self._guide = None if labels is None else Guide(labels)
        return self._guide is not None or self._others.begin()

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        return (self._guide or self._others).choose(kind, options)

    def reached(self, state: Hashable) -> None:
        if self._guide is None:
            self._others.reached(state)

    def ended(self, choices: Choices) -> None:
        if self._guide is None:
            self._others.ended(choices)


class Randomized(Strategy):
    """Base of strategies with a generator: faults strike at a given rate, the rest is up to `pick`."""

    def __init__(self, seed: int, *, fault_rate: float = FAULT_RATE) -> None:
        self.seed = seed
        self.fault_rate = fault_rate
        self.num_schedules = 0
        self.random = random.Random(seed)

    def begin(self) -> bool:
        # Each schedule has its own generator, so that the n-th can be run without those before it.
        self.random = random.Random(f"{self.seed}/{self.num_schedules}")
        self.num_schedules += 1
        return True

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        plain = count_plain(options)
        if plain == len(options):
            return self.pick(kind, options)
        rare = kind is Kind.STRIKE or (plain == 1 and options[0].owner == CLOCK)
        rate = self.fault_rate * RARE_FACTOR if rare else self.fault_rate
        if plain == 0 or self.random.random() < rate:
            return self.random.randrange(plain, len(options))
        return self.pick(kind, options[:plain]) if plain > 1 else 0

    def pick(self, kind: Kind, options: Sequence[Option]) -> int:
        """Choose among options that are no faults."""
        raise NotImplementedError


class RandomWalk(Randomized):
    """Every option is as likely as every other."""

    name = "random"

    def pick(self, kind: Kind, options: Sequence[Option]) -> int:
        return int(self.random.random() * len(options))
