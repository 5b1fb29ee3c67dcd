"""The hunt for one mutant: random workloads, a few schedules of each, until a property fails."""

from __future__ import annotations

import time
from typing import NamedTuple

from pawl.actors.simulation.exploration import ActorFailed
from pawl.testing import Found, explore_workload
from pawl.testing.cluster import PropertyFailed
from tests.mutants.mutant import Mutant, planted

SCHEDULES_OF_EACH = 4
"""Schedules of one workload before the next one is drawn."""


class Hunt(NamedTuple):
    """What came of it."""

    schedules: int
    """Run; when it was found, the failing one is the last."""
    seconds: float
    """Until then, without shrinking."""
    seed: int
    """Of the workload that was explored last."""
    found: Found | None

    @property
    def named_by(self) -> str:
        """What failed: a property, or what an actor raised."""
        return "" if self.found is None else name_of(self.found.failure.error)


def name_of(error: BaseException) -> str:
    """The property that an error names; for what an actor raised, its class."""
    if isinstance(error, PropertyFailed):
        return error.property
    if isinstance(error, ActorFailed):
        return f"raised: {type(error.error).__name__}"
    return type(error).__name__


def hunt(mutant: Mutant, strategy: str, schedules: int, *, first_seed: int = 0) -> Hunt:
    """Explore with the defect planted, from workload `first_seed` on, for so many schedules."""
    with planted(mutant):
        return explore_stream(mutant, strategy, schedules, first_seed=first_seed)


def explore_stream(mutant: Mutant, strategy: str, schedules: int, *, first_seed: int = 0) -> Hunt:
    """What `hunt` does, with the code as it is."""
    began, run, seed = time.perf_counter(), 0, first_seed
    while True:
        workload = mutant.workload(seed)
        each = min(SCHEDULES_OF_EACH, schedules - run)
        outcome = explore_workload(workload, strategy, each, seed=seed, faults=mutant.faults, shrink=False)
        run += outcome.result.schedules
        if outcome.found is not None or run >= schedules:
            return Hunt(run, time.perf_counter() - began, seed, outcome.found)
        seed += 1
