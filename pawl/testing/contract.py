"""What any policy, prefix cache, scheduler and size of the server must keep, as a class of tests to subclass.

    class TestMine(SchedulerContract):
        policy = Mine

Every property is judged over random workloads and schedules, in each kind of loop. Needs the pytest plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from pawl.actors.scheduler import Scheduler
from pawl.actors.simulation.faults import Faults
from pawl.exploration import CELLS, Totals
from pawl.loops.policy import Policy
from pawl.memory.prefix.base import PrefixCache
from pawl.testing.cluster import NO_FAULTS
from pawl.testing.contention import contention
from pawl.testing.plugins import know_cache, know_policy, know_scheduler
from pawl.testing.workload import Workload

if TYPE_CHECKING:
    from pawl.pytest_plugin import Explorer


class SchedulerContract:
    """Subclass it, name the class `Test…`, and state what is yours. What is not stated is the engine's own.

    `pawl replay` finds your classes again if they stand at the top of a module.
    """

    policy: ClassVar[type[Policy] | str] = "fcfs"
    """Your class of policies, made without arguments, or the name of a built-in one. How many later requests may be
    admitted before one that waits is what it states as `max_overtaken`; a few, where it states nothing."""
    cache: ClassVar[type[PrefixCache] | None] = None
    """Your class of prefix caches, made from the page size."""
    scheduler: ClassVar[type[Scheduler] | None] = None
    """Your subclass of Scheduler. What it decides must follow from its inputs alone, as its runs are replayed."""
    shape: ClassVar[dict[str, Any]] = {}
    """Fields of `Shape` that are not drawn at random."""
    num_workloads: ClassVar[int] = 8
    """In each kind of loop, for each kind of workload."""
    max_requests: ClassVar[int] = 5
    strategy: ClassVar[str] = "pct"
    lost_steps: ClassVar[int] = 1
    """At most, in the runs in which steps fail."""

    @pytest.mark.parametrize("cell", CELLS)
    def test_every_property_holds(self, cell: str, explore: Explorer) -> None:
        self._explore(cell, explore, self._random)

    @pytest.mark.parametrize("cell", CELLS)
    def test_every_property_holds_when_many_wait(self, cell: str, explore: Explorer) -> None:
        self._explore(cell, explore, contention)

    @pytest.mark.parametrize("cell", CELLS)
    def test_every_property_holds_when_steps_fail(self, cell: str, explore: Explorer) -> None:
        self._explore(cell, explore, self._random, Faults(strike=self.lost_steps))

    def _random(self, seed: int, **shape: Any) -> Workload:
        return Workload.random(seed, max_requests=self.max_requests, **shape)

    def _explore(
        self, cell: str, explore: Explorer, draw: Callable[..., Workload], faults: Faults = NO_FAULTS
    ) -> Totals:
        pacing, mixed = CELLS[cell]
        fixed = {"pacing": pacing, "mixed": mixed, **self._own_parts(), **self.shape}
        seeds = range(explore.seed, explore.seed + self.num_workloads)
        return explore((draw(seed, **fixed) for seed in seeds), self.strategy, faults=faults)

    def _own_parts(self) -> dict[str, str]:
        policy = self.policy
        parts = {"policy": policy if isinstance(policy, str) else know_policy(policy)}
        if self.cache is not None:
            parts["cache"] = know_cache(self.cache)
        if self.scheduler is not None:
            parts["scheduler"] = know_scheduler(self.scheduler)
        return parts
