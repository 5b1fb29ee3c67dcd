"""What any order of admission, any prefix cache and any size of the server must keep, as a class of tests to subclass.

    class TestMine(SchedulerContract):
        policy = Mine

Every property is judged over random workloads and schedules, in each kind of loop. Needs the pytest plugin.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, cast

import pytest

from actors.runtime.faults import Faults
from loops.policy import POLICIES, Policy
from memory.prefix.base import PrefixCache
from memory.prefix.select import KINDS, Kind, Wish
from pawl.testing.cluster import NO_FAULTS
from pawl.testing.queues import queue
from pawl.testing.workload import Workload

if TYPE_CHECKING:
    from pawl.pytest_plugin import Explored, Explorer

CELLS = {
    "overlap-mixed": ("overlap", True),
    "overlap": ("overlap", False),
    "lockstep-mixed": ("lockstep", True),
    "lockstep": ("lockstep", False),
}
"""Every kind of loop: its pacing, and whether one step may hold prompts and outputs."""


class SchedulerContract:
    """Subclass it, name the class `Test…`, and state what is yours. What is not stated is the engine's own."""

    policy: ClassVar[type[Policy] | str] = "fcfs"
    """Your class of policies, made without arguments, or the name of a built-in one. How many later requests may be
    admitted before one that waits is what it states as `max_overtaken`; a few, where it states nothing."""
    shape: ClassVar[dict[str, Any]] = {}
    """Fields of `Shape` that are not drawn at random."""
    num_workloads: ClassVar[int] = 8
    """In each kind of loop, for each of the two kinds of workload."""
    max_requests: ClassVar[int] = 5
    strategy: ClassVar[str] = "pct"
    lost_steps: ClassVar[int] = 1
    """At most, in the runs in which steps fail."""

    def make_cache(self, page_size: int) -> PrefixCache | None:
        """An empty prefix cache of yours; None: the engine's own, of the kind that `shape` names or the seed draws."""
        return None

    @pytest.mark.parametrize("cell", CELLS)
    def test_every_property_holds(self, cell: str, explore: Explorer) -> None:
        self._explore(cell, explore, self._random)

    @pytest.mark.parametrize("cell", CELLS)
    def test_every_property_holds_when_many_wait(self, cell: str, explore: Explorer) -> None:
        self._explore(cell, explore, queue)

    @pytest.mark.parametrize("cell", CELLS)
    def test_every_property_holds_when_steps_fail(self, cell: str, explore: Explorer) -> None:
        self._explore(cell, explore, self._random, Faults(strike=self.lost_steps))

    def _random(self, seed: int, **shape: Any) -> Workload:
        return Workload.random(seed, max_requests=self.max_requests, **shape)

    def _explore(
        self, cell: str, explore: Explorer, draw: Callable[..., Workload], faults: Faults = NO_FAULTS
    ) -> Explored:
        pacing, mixed = CELLS[cell]
        fixed: dict[str, Any] = {"pacing": pacing, "mixed": mixed}
        with ExitStack() as stack:
            fixed["policy"] = stack.enter_context(known_policy(self.policy))
            if type(self).make_cache is not SchedulerContract.make_cache:
                stack.enter_context(cache_in_place(type(self).__name__, self.make_cache))
                fixed["cache"] = "radix"
            seeds = range(explore.seed, explore.seed + self.num_workloads)
            drawn = (draw(seed, **(fixed | self.shape)) for seed in seeds)
            return explore(drawn, self.strategy, faults=faults)


@contextmanager
def known_policy(policy: type[Policy] | str) -> Iterator[str]:
    """The name under which the scheduler finds the policy, within this context. `pawl replay` finds it by the same name
    if it is a class at the top of a module."""
    if isinstance(policy, str):
        yield policy
        return
    name = f"{inspect.getfile(policy)}:{policy.__qualname__}"
    with _exchanged(POLICIES, name, lambda seed: policy()):
        yield name


@contextmanager
def cache_in_place(name: str, make: Callable[[int], PrefixCache | None]) -> Iterator[None]:
    """Within this context, the prefix cache called `radix` is what `make` gives for a page size."""

    def made(wish: Wish) -> PrefixCache:
        cache = make(wish.page_size)
        if cache is None:
            raise TypeError(f"make_cache of {name} gave no cache")
        return cache

    kinds = cast("dict[str, Kind]", KINDS)
    with _exchanged(kinds, "radix", kinds["radix"]._replace(cache=name, make=made)):
        yield


@contextmanager
def _exchanged(table: dict[str, Any], name: str, value: Any) -> Iterator[None]:
    """`table[name]` is `value` within this context."""
    before = table.get(name)
    table[name] = value
    try:
        yield
    finally:
        if before is None:
            del table[name]
        else:
            table[name] = before
