"""Shrinking of choices: the most boring schedule that still fails. Delta debugging towards the fair schedule.

A. Zeller, R. Hildebrandt: Simplifying and Isolating Failure-Inducing Input, TSE 2002.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from pawl.actors.simulation.choice import Choices

Attempt: TypeAlias = Callable[[Sequence[int]], Choices | None]
"""Runs the schedule that indices suggest: what was decided in truth if it fails in the same way, else None."""

MOST_RUNS = 500
SHIFTS = (1, -1, 2, -2, 3, 4)


def trimmed(indices: Sequence[int]) -> list[int]:
    """Without the fair decisions at the end."""
    end = len(indices)
    while end and indices[end - 1] == 0:
        end -= 1
    return list(indices[:end])


def cost(choices: Choices) -> tuple[int, int, int]:
    """What shrinking makes smaller: deviations, decisions up to the last one, sum of the indices."""
    kept = trimmed(choices.indices)
    return sum(1 for index in kept if index), len(kept), sum(kept)


class Shrinker:
    """Makes one failing schedule smaller."""

    def __init__(self, choices: Choices, attempt: Attempt, most_runs: int = MOST_RUNS) -> None:
        self.best = choices
        self.num_runs = 0
        self._attempt = attempt
        self._most_runs = most_runs
        self._tried: set[tuple[int, ...]] = {tuple(trimmed(choices.indices))}

    def shrink(self) -> Choices:
        """The smallest schedule found."""
        passes = (
            self._without_deviations,
            self._without_decisions,
            self._with_lower_indices,
            self._without_one_and_shifted,
        )
        improved = True
        while improved and self.num_runs < self._most_runs:
            improved = False
            for candidates in passes:
                improved = self._exhaust(candidates) or improved
        return self.best

    def _exhaust(self, candidates: Callable[[list[int]], Iterator[list[int]]]) -> bool:
        """Take every improvement that a pass has to offer; whether there was one."""
        improved = False
        while True:
            indices = trimmed(self.best.indices)
            found = next((found for candidate in candidates(indices) if (found := self._better(candidate))), None)
            if found is None:
                return improved
            self.best = found
            improved = True

    def _better(self, indices: list[int]) -> Choices | None:
        key = tuple(trimmed(indices))
        if key in self._tried or self.num_runs >= self._most_runs:
            return None
        self._tried.add(key)
        self.num_runs += 1
        ran = self._attempt(key)
        return ran if ran is not None and cost(ran) < cost(self.best) else None

    @staticmethod
    def _without_deviations(indices: list[int]) -> Iterator[list[int]]:
        """Some deviations become fair, many at once first."""
        places = [at for at, index in enumerate(indices) if index]
        for size in halves(len(places)):
            for first in range(0, len(places), size):
                dropped = set(places[first : first + size])
                yield [0 if at in dropped else index for at, index in enumerate(indices)]

    @staticmethod
    def _without_decisions(indices: list[int]) -> Iterator[list[int]]:
        """Some decisions are left out, and what follows moves up."""
        for size in halves(len(indices)):
            for first in range(0, len(indices), size):
                yield indices[:first] + indices[first + size :]

    @staticmethod
    def _without_one_and_shifted(indices: list[int]) -> Iterator[list[int]]:
        """One deviation becomes fair, and the later ones come a little sooner or later: a fair choice in its place may
        need more decisions, or fewer, for the same."""
        for at, index in enumerate(indices):
            if index:
                for shift in SHIFTS:
                    behind = indices[at + 1 :]
                    moved = [0] * shift + behind if shift > 0 else behind[-shift:]
                    yield [*indices[:at], 0, *moved]

    @staticmethod
    def _with_lower_indices(indices: list[int]) -> Iterator[list[int]]:
        """A deviation becomes a smaller one."""
        for at, index in enumerate(indices):
            for lower in sorted({1, index // 2, index - 1} - {0, index}) if index > 1 else ():
                yield [*indices[:at], lower, *indices[at + 1 :]]


def halves(size: int) -> Iterator[int]:
    """size, size / 2, ... 1."""
    while size:
        yield size
        size //= 2
