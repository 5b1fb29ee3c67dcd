"""Coverage-guided exploration: schedules that reached a state nobody had seen are kept, and changed a little."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from pawl.actors.simulation.choice import Choices, Kind, Option
from pawl.actors.simulation.strategies.simple import FAULT_RATE, Randomized

FRESH_SHARE = 0.2
"""Share of schedules that begin from nothing."""
TAIL_RATES = (0.0, 0.05, 0.3, 1.0)
"""Chances of a random choice, behind what was kept; one is drawn for each schedule."""
MOST_CHANGES = 4


class CoverageGuided(Randomized):
    """The state is what the case says it is (`Case.state`)."""

    name = "coverage"
    wants_states = True

    def __init__(self, seed: int, *, fault_rate: float = FAULT_RATE) -> None:
        super().__init__(seed, fault_rate=fault_rate)
        self.corpus: list[list[int]] = []
        """Indices of the schedules that found something new."""
        self.seen: set[Hashable] = set()
        self._found_new = False
        self._prefix: list[int] = []
        self._position = 0
        self._tail_rate = 1.0

    def begin(self) -> bool:
        super().begin()
        self._found_new = False
        self._position = 0
        self._tail_rate = self.random.choice(TAIL_RATES)
        fresh = not self.corpus or self.random.random() < FRESH_SHARE
        self._prefix = [] if fresh else self._mutated()
        return True

    def _mutated(self) -> list[int]:
        """A kept schedule, cut, changed in some places, or continued as another one."""
        draw = self.random
        # What was found last is the least explored: the newer half is taken twice as often as the older.
        first = draw.randrange(len(self.corpus)) if draw.random() < 0.5 else len(self.corpus) // 2
        kept = self.corpus[draw.randrange(first, len(self.corpus))]
        cut = draw.randrange(len(kept) + 1)
        changed = kept[:cut]
        if draw.random() < 0.25:
            other = draw.choice(self.corpus)
            changed += other[cut:]
        for _ in range(draw.randrange(MOST_CHANGES)):
            if changed:
                changed[draw.randrange(len(changed))] = draw.choice((0, 1, 1, 2, 3))
        return changed

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        at = self._position
        self._position += 1
        if at < len(self._prefix):
            index = self._prefix[at]
            return index if index < len(options) else 0
        return super().choose(kind, options)

    def pick(self, kind: Kind, options: Sequence[Option]) -> int:
        return self.random.randrange(len(options)) if self.random.random() < self._tail_rate else 0

    def reached(self, state: Hashable) -> None:
        if state not in self.seen:
            self.seen.add(state)
            self._found_new = True

    def ended(self, choices: Choices) -> None:
        if self._found_new:
            self.corpus.append(list(choices.indices))
