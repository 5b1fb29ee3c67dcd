"""Probabilistic concurrency testing: random priorities with a few change points.

S. Burckhardt, P. Kothari, M. Musuvathi, S. Nagarakatte: A Randomized Scheduler with Probabilistic Guarantees of
Finding Bugs, ASPLOS 2010. Whoever makes progress (an actor with its outbox, a wire, the clock) is one of n threads with
a random priority; the highest one that can run does. At depth - 1 random places among k decisions the one that would
run is put below all others. A bug that needs d ordered events is found with a chance of at least 1 / (n * k ** (d - 1))
in each schedule.
"""

from __future__ import annotations

from collections.abc import Sequence

from pawl.actors.simulation.choice import Choices, Kind, Option
from pawl.actors.simulation.strategies.simple import FAULT_RATE, Randomized

LENGTHS = (50, 100, 200, 400)
"""Decisions of a schedule: as many as most runs of a small engine have."""


class PCT(Randomized):
    """`depth` is d of the paper; k is the longest schedule so far, or `length`. Without either it is drawn."""

    name = "pct"

    def __init__(self, seed: int, depth: int = 3, *, length: int = 0, fault_rate: float = FAULT_RATE) -> None:
        if depth < 1 or length < 0:
            raise ValueError(f"depth {depth} must be 1 at least, and length {length} must not be below 0")
        super().__init__(seed, fault_rate=fault_rate)
        self.depth = depth
        self.length = length
        self._priorities: dict[str, float] = {}
        self._changes: dict[int, float] = {}
        self._position = 0

    def begin(self) -> bool:
        super().begin()
        self._priorities = {}
        self._position = 0
        length = self.length or self.random.choice(LENGTHS)
        places = self.random.sample(range(length), min(self.depth - 1, length))
        # Initial priorities are above 0, and the later a change, the lower: nobody gets between two of them.
        self._changes = {place: -1.0 - number for number, place in enumerate(sorted(places))}
        return True

    def pick(self, kind: Kind, options: Sequence[Option]) -> int:
        if kind is not Kind.NEXT:
            return self.random.randrange(len(options))
        lowered = self._changes.get(self._position)
        self._position += 1
        chosen = self._highest(options)
        if lowered is None:
            return chosen
        self._priorities[options[chosen].owner] = lowered
        return self._highest(options)

    def _highest(self, options: Sequence[Option]) -> int:
        best, chosen = float("-inf"), 0
        for index, option in enumerate(options):
            priority = self._priorities.get(option.owner)
            if priority is None:
                priority = self._priorities[option.owner] = self.random.random()
            if priority > best:
                best, chosen = priority, index
        return chosen

    def ended(self, choices: Choices) -> None:
        self.length = max(self.length, self._position)
