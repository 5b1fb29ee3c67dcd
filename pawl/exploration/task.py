"""What one process explores: workloads one after the other, until its time is over or something is found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from pawl.commands.failures import CommandFailed, UsageError
from pawl.exploration import ANY, CELLS, Totals
from pawl.features.row import Seeded
from pawl.memory.prefix.select import CACHES

if TYPE_CHECKING:
    from pawl.testing import Faults, Found, Workload
    from pawl.testing.exploring import Outcome
    from pawl.testing.scenario import Scenario

EXPLORED = ("fair", "pct", "pos", "random")
"""Strategies that take turns unless one is named: each has one schedule of a workload, then the next one is drawn."""
LEARNING = {"coverage": 20, "exhaustive": 20}
"""Those that learn from the schedules before -> schedules of one workload."""
REPLAYED_EVERY = 3
"""Workloads of which one has its schedules decided again from their own records as well."""
CONFIRMED_EVERY = 41
"""Workloads of which one has a schedule run twice: it must come out the same. A prime, so all strategies meet it."""
CONTENTION, SCARCITY, APART, CROWDING, STEERING, CONVERSING = 0.15, 0.24, 0.15, 0.1, 0.1, 0.06
"""Shares of the workloads in which many requests wait for few places, in which pages are short, in which prompts are
computed elsewhere, in which long and short ones are computed beside each other, in which orders come while replicas
come and go, and in which one session has many turns."""
FAILING = 0.1
"""Share of the workloads in whose runs a line may raise."""
LOSING = 0.75
"""Share of the workloads of several replicas, each a process, in whose runs one is lost in the middle of a request."""
SPRINKLED = 0.4
"""Share of those in which requests ask something of their tokens, as others do."""
UNSTEADY = "one_decision_log: the same schedule came out differently"
REPORT_S = 0.5
OF_THE_WORKLOAD = 0.6
"""Share of the time for shrinking in which the workload is made smaller; then the schedule is."""
NEEDS_A_CACHE = frozenset(
    {"eviction", "host_pages", "storage_pages", "write_policy", "window", "cache_core", "prefillers"}
)
"""Fields that say how the cache of the engine works, or what stands beside it."""


BELOW = frozenset({"host_pages", "storage_pages"})
"""Fields with room for pages below the device, in which replicas that prefill hand them over."""
HOST_PAGES = 8


class Task(NamedTuple):
    """What one process explores."""

    seed: int
    stride: int
    """Workloads seed, seed + stride, seed + 2 stride, …"""
    strategy: str
    cell: str
    policy: str
    cache: str
    scheduler: str
    fixed: dict[str, Any]
    """Fields of the server that are not drawn."""
    of_requests: dict[str, Any]
    """Fields of every request that are not drawn."""
    workload: Path | None
    max_requests: int
    faults: int
    shrink_seconds: float
    schedules: int
    """At the most; 0: as many as the time allows."""
    ends: float
    """When its time is over, by `time.monotonic`."""

    @property
    def over(self) -> bool:
        """Whether its time is."""
        return time.monotonic() >= self.ends

    @property
    def shape(self) -> dict[str, Any]:
        """Fields of every workload's server."""
        fixed: dict[str, Any] = {"scheduler": self.scheduler, **self.fixed}
        if self.cell != "all":
            fixed["pacing"], fixed["mixed"] = CELLS[self.cell]
        if fixed.get("prefillers") and fixed.keys().isdisjoint(BELOW):
            fixed["host_pages"] = HOST_PAGES
        if fixed.get("stages", 1) > 1:
            fixed.setdefault("pacing", "pipeline")
        cache = CACHES[0] if self.cache == ANY and not NEEDS_A_CACHE.isdisjoint(self.fixed) else self.cache
        chosen = {"policy": self.policy, "cache": cache}
        return fixed | {name: value for name, value in chosen.items() if value != ANY}


class Report(NamedTuple):
    """How far an exploration is."""

    totals: Totals = Totals()
    found: Found | None = None
    unsteady: str = ""
    """How a schedule that was run twice came out differently."""
    final: bool = False
    """Whether it is the last one: until then what was found may get smaller."""

    @property
    def text(self) -> str:
        """What was found, if something was."""
        return self.unsteady or str(self.found or "")


def _suspected(task: Task) -> str:
    """Parts of the user's own, of which one may be why."""
    own = [name for name in (task.policy, task.cache, task.scheduler) if ":" in name]
    cause = "draws chance that nobody has seeded, reads a clock or goes through a set"
    return f"; look whether yours {cause}: {', '.join(own)}" if own else ""


def explore(task: Task) -> Iterator[Report]:
    """Explore until the time is over or something is found; tells how far it is now and then, at once what it has
    found, and at the end."""
    from pawl.actors.simulation.strategies.exhaustive import NotDeterministic
    from pawl.testing.exploring import shrunk

    totals, told, number = Totals(), time.monotonic(), 0
    while not task.over and not 0 < task.schedules <= totals.schedules:
        workload = workload_of(task, task.seed + number * task.stride)
        try:
            outcome = _explored(task, workload, number)
        except NotDeterministic as error:
            words = f"{UNSTEADY}{_suspected(task)}\n  {error!s:.1000}\n  workload: {workload.encode()}"
            yield Report(totals, unsteady=words, final=True)
            return
        totals, found = totals.plus(Totals.of(outcome)), outcome.found
        number += 1
        if found is not None:
            yield Report(totals, found)
            now = time.monotonic()
            seconds = max(0.0, min(task.ends - now, task.shrink_seconds))
            over, enough = partial(_past, now + seconds), partial(_past, now + seconds * OF_THE_WORKLOAD)
            yield Report(totals, shrunk(found, over=over, enough=enough), final=True)
            return
        if time.monotonic() - told > REPORT_S:
            told = time.monotonic()
            yield Report(totals)
    yield Report(totals, final=True)


def _explored(task: Task, workload: Workload, number: int) -> Outcome:
    """What comes of this workload."""
    from pawl.testing import explore_workload
    from pawl.testing.exploring import described
    from pawl.testing.subject.watchdog import note

    note(f"\n{described(workload)}", anew=True)
    seed, strategy = task.seed + number * task.stride, _strategy(task, number)
    return explore_workload(
        workload,
        strategy,
        LEARNING.get(strategy, 1),
        seed=seed,
        faults=faults_of(task, seed, workload),
        confirm_every=int(number % CONFIRMED_EVERY == 0),
        replayed=number % REPLAYED_EVERY == 0,
        shrink=False,
        over=lambda: task.over,
    )


def _strategy(task: Task, number: int) -> str:
    if task.strategy != "all":
        return task.strategy
    # There is one fair schedule of a workload that stays the same.
    strategies = EXPLORED if task.workload is None or number == 0 else EXPLORED[1:]
    return strategies[number % len(strategies)]


def _past(ends: float) -> bool:
    return time.monotonic() >= ends


def faults_of(task: Task, seed: int, workload: Workload) -> Faults:
    """In one workload of three steps are lost, in another one clocks err, up to `task.faults` times, some have both;
    in one of eight an actor may crash, in one of three where others may go on without it; in one of five whole
    processes are lost, where there are some; in one of twelve a token of the worker means nothing. In one of ten, where
    the engine goes on to the end, a line of a handler raises, beside lost steps alone. In three of four others in which
    several replicas are processes, one is lost that is in the middle of a request."""
    from pawl.actors.simulation.faults import FaultKind
    from pawl.actors.simulation.processes import WHOLE
    from pawl.testing import Faults

    chance = Seeded(~seed)
    steps, clocks = chance.chance(1 / 3), chance.chance(1 / 3)
    crash = chance.chance(0.35 if workload.shape.routed else 0.12)
    count = min(task.faults, chance.within(1, 3))
    in_time = count if clocks else 0
    whole = chance.pick(WHOLE) if chance.chance(0.2) else None
    garbled = chance.chance(1 / 12)
    strike = count if steps else 0
    # Of a generator of its own: others are drawn as if there were none of these.
    goes_on = workload.closing is None and workload.shape.rank_hosts == 1  # a host that dies may end its engine
    if task.faults and goes_on and Seeded((seed << 32) + 2).chance(FAILING):
        return Faults(strike=strike, fail=1)
    own = Seeded((seed << 32) + 3)
    losing = task.faults > 0 and workload.processes and workload.shape.replicas > 1 and own.chance(LOSING)
    if losing:
        whole = own.pick(WHOLE)
    return Faults(
        strike=strike,
        garble=count if garbled else 0,
        rush=in_time,
        late=in_time,
        jump=in_time,
        crash=min(task.faults, 1) if crash else 0,
        kill=count if whole is FaultKind.KILL else 0,
        freeze=count if whole is FaultKind.FREEZE else 0,
        part=count if whole is FaultKind.PART else 0,
        in_work=losing,
    )


def workload_of(task: Task, seed: int) -> Workload:
    """The workload of this seed. Raises UsageError where what was fixed cannot be had together."""
    if task.workload is not None:
        return load_scenario(task.workload).workload
    drawn = _drawn(task, seed)
    try:
        drawn.shape.check()
    except ValueError as error:
        raise UsageError(str(error)) from error
    return drawn


def _drawn(task: Task, seed: int) -> Workload:
    from pawl.testing import Workload, apart, contention, conversing, crowding, scarcity, steering
    from pawl.testing.edges import edged
    from pawl.testing.sprinkled import sprinkled

    # Of the seed and not its remainder, which the strategy depends on as well.
    kind, begins = Seeded(seed << 32), 0.0
    makers: tuple[tuple[Callable[..., Workload], float], ...] = (
        *((contention, CONTENTION), (scarcity, SCARCITY), (apart, APART)),
        *((crowding, CROWDING), (steering, STEERING), (conversing, CONVERSING)),
    )
    for maker, share in makers:
        if kind.chance(share / (1 - begins)):
            drawn = maker(seed, **task.shape)
            return _as_fixed(task, edged(sprinkled(drawn, seed) if kind.chance(SPRINKLED) else drawn, seed))
        begins += share
    return _as_fixed(task, edged(Workload.random(seed, max_requests=task.max_requests, **task.shape), seed))


def _as_fixed(task: Task, drawn: Workload) -> Workload:
    if not task.of_requests:
        return drawn
    arrivals = tuple(msgspec.structs.replace(arrival, **task.of_requests) for arrival in drawn.arrivals)
    return msgspec.structs.replace(drawn, arrivals=arrivals)


def load_scenario(path: Path) -> Scenario:
    """What `pawl trace export scenario` wrote. Raises CommandFailed."""
    from pawl.testing.scenario import Scenario

    try:
        scenario = Scenario.load(path)
        scenario.workload.shape.check()
    except (OSError, ValueError) as error:
        raise CommandFailed(f"{path} holds no scenario: {error}") from error
    return scenario
