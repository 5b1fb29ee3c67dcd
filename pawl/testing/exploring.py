"""Exploration of one workload, shrinking of workload and schedule together, and schedules in files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from pawl.actors.simulation.choice import Choices, ChoiceSource, Diverged
from pawl.actors.simulation.exploration import (
    MOST_STEPS,
    Case,
    Failure,
    Result,
    Scenario,
    explore,
    never,
    replay,
    way_of,
)
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.shrinking import MOST_RUNS
from pawl.actors.simulation.strategies.coverage import CoverageGuided
from pawl.actors.simulation.strategies.exhaustive import Exhaustive
from pawl.actors.simulation.strategies.pct import PCT
from pawl.actors.simulation.strategies.pos import POS
from pawl.actors.simulation.strategies.simple import Fair, Guided, RandomWalk, Strategy
from pawl.testing.cluster import NO_FAULTS, Cluster, cluster
from pawl.testing.failing import FailingCluster
from pawl.testing.models import GHOST, Model
from pawl.testing.plugins import KeptPart, kept_parts
from pawl.testing.replica import MakeProperties, quick_properties, record_properties
from pawl.testing.smaller import Tried, smaller, smallest
from pawl.testing.workload import Workload, labels_of

STRATEGIES: dict[str, Callable[[int], Strategy]] = {
    "fair": lambda seed: Fair(),
    "random": RandomWalk,
    "pct": PCT,
    "pos": POS,
    "exhaustive": lambda seed: Exhaustive(),
    "coverage": CoverageGuided,
}
"""Name on the command line -> maker, given a seed."""
FEWEST_OF_A_SMALLER_ONE, MOST_OF_A_SMALLER_ONE = 4, 40
"""Schedules, the more the longer it took to find the first one."""
STEPS_OF_A_TOKEN = 100


class Found(NamedTuple):
    """A workload and a schedule under which a property fails."""

    workload: Workload
    faults: Faults
    failure: Failure
    strategy: str
    """The one that found it."""
    seed: int
    """Of the strategy."""
    model: Model = GHOST

    def save(self, path: Path) -> None:
        """Write all that `replay_schedule` needs; with another model than the ghost it needs that as well."""
        choices = self.failure.shrunk
        choices.facts.update(
            workload=self.workload.encode(),
            faults=msgspec.json.encode(self.faults).decode(),
            strategy=self.strategy,
            seed=str(self.seed),
            error=str(self.failure.shrunk_error),
            parts=msgspec.json.encode(kept_parts(self.workload.shape)).decode(),
        )
        choices.save(path)

    def __str__(self) -> str:
        return f"{self.failure}\n{described(self.workload)}"


def described(workload: Workload) -> str:
    """The server and the requests, in lines."""
    arrivals = workload.arrivals
    # Numbers are given when requests are sent: where some are sent later, another order may come about.
    delayed = any(arrival.at_s or arrival.after_tokens for arrival in arrivals)
    names = [("request" if delayed else f"request {number}") for number in range(1, len(arrivals) + 1)]
    requests = [f"  {name}: {brief(arrival)}" for name, arrival in zip(names, arrivals, strict=True)]
    return "\n".join([f"  server: {brief(workload.shape)}", *requests])


def brief(values: msgspec.Struct) -> str:
    """The fields that are not what they are by default."""
    parts = [
        f"{field.name}={getattr(values, field.name)!r}"
        for field in msgspec.structs.fields(values)
        if getattr(values, field.name) != field.default
    ]
    return ", ".join(parts) or "as by default"


class Outcome(NamedTuple):
    """What came of one workload."""

    result: Result
    found: Found | None
    features: frozenset[str]
    """Those that the workload has."""
    reached: Counter[str]
    """Event -> runs in which it happened."""


def explore_workload(
    workload: Workload,
    strategy: str | Strategy = "pct",
    schedules: int = 100,
    *,
    seed: int = 0,
    faults: Faults = NO_FAULTS,
    confirm_every: int = 0,
    shrink: bool = True,
    replayed: bool = True,
    model: Model = GHOST,
    over: Callable[[], bool] = never,
) -> Outcome:
    """Serve the workload under up to `schedules` schedules; at the first failure shrink workload and schedule.

    `replayed`: each run is also replayed from its own records, which takes a third of the time. `model` computes. Once
    `over` says so no further run begins.
    """
    decider = STRATEGIES[strategy](seed) if isinstance(strategy, str) else strategy
    properties = record_properties if replayed else quick_properties
    reached: Counter[str] = Counter()
    # A strategy that was begun elsewhere cannot be begun again: what it finds is shrunk at once.
    most = MOST_RUNS if shrink and not isinstance(strategy, str) else 0
    result = explore(
        scenario_of(workload, faults, properties, model, reached),
        decider,
        schedules,
        max_steps=most_steps(workload),
        confirm_every=confirm_every,
        most_shrink_runs=most,
        over=over,
    )
    failure = result.failure
    found = Found(workload, faults, failure, decider.name, seed, model) if failure is not None else None
    if found is not None and shrink and isinstance(strategy, str):
        found = shrunk(found, over=over)
    return Outcome(result, found, frozenset(labels_of(workload)), reached)


def most_steps(workload: Workload) -> int:
    """Steps of a run after which it counts as endless: many times what the most wasteful schedule needs."""
    return max(MOST_STEPS, STEPS_OF_A_TOKEN * workload.num_tokens)


def _scenario(
    workload: Workload,
    faults: Faults,
    properties: MakeProperties,
    model: Model,
    reached: Counter[str] | None,
    source: ChoiceSource,
) -> Case:
    kind = FailingCluster if faults.fail else Cluster
    made = cluster(workload, source, faults=faults, properties=properties, model=model, kind=kind)
    made.reached = reached
    return made


def scenario_of(
    workload: Workload,
    faults: Faults = NO_FAULTS,
    properties: MakeProperties = record_properties,
    model: Model = GHOST,
    reached: Counter[str] | None = None,
) -> Scenario:
    """What `pawl.actors.simulation.exploration.explore` takes. Events of runs that hold are counted in `reached`."""
    return partial(_scenario, workload, faults, properties, model, reached)


def shrunk(found: Found, *, over: Callable[[], bool] = never, enough: Callable[[], bool] = never) -> Found:
    """First less of everything, as long as the same kind of failure is found in it, until `enough` says so; then a
    smaller schedule of that. Ends early, with the smallest so far, once `over` says so."""
    schedules = min(FEWEST_OF_A_SMALLER_ONE + 2 * found.failure.schedule, MOST_OF_A_SMALLER_ONE)
    fails = partial(_explored, found=found, schedules=schedules, most=0, over=over)
    either = partial(_either, enough, over)
    tried, failure = smallest(Tried(found.workload, found.faults), found.failure, smaller, fails, over=either)
    found = found._replace(workload=tried.workload, faults=tried.faults, failure=failure)
    again = _explored(tried, failure, found, 1, MOST_RUNS, over)
    return found if again is None else found._replace(failure=again)


def _either(one: Callable[[], bool], other: Callable[[], bool]) -> bool:
    return one() or other()


def _explored(
    tried: Tried, before: Failure, found: Found, schedules: int, most: int, over: Callable[[], bool]
) -> Failure | None:
    """A failure of the kind that was found, here: under what is left of the schedule of the one before, or others."""
    failure = explore(
        scenario_of(tried.workload, tried.faults, model=found.model),
        Guided(before.choices.labels, STRATEGIES[found.strategy](found.seed)),
        schedules,
        max_steps=most_steps(tried.workload),
        most_shrink_runs=most,
        over=over,
    ).failure
    if failure is None or way_of(failure.error) != way_of(found.failure.error):
        return None
    return failure


class Schedule(NamedTuple):
    """A saved failure."""

    workload: Workload
    faults: Faults
    choices: Choices
    error: str
    """What it showed when it was saved."""
    parts: dict[str, KeptPart]
    """Those of the user's own."""
    strategy: str
    seed: int
    """Of the strategy that found it."""


def load_schedule(path: Path) -> Schedule:
    """What `Found.save` wrote. Raises OSError, or ValueError for a file that holds no schedule."""
    choices = Choices.load(path)
    facts = choices.facts
    if "workload" not in facts:
        raise ValueError("these choices do not say which workload they are for")
    faults = msgspec.json.decode(facts.get("faults", "{}"), type=Faults)
    strategy, seed = facts.get("strategy", ""), int(facts.get("seed", "0"))
    parts = msgspec.json.decode(facts.get("parts", "{}"), type=dict[str, KeptPart])
    return Schedule(Workload.decode(facts["workload"]), faults, choices, facts.get("error", ""), parts, strategy, seed)


def replay_schedule(schedule: Schedule, model: Model = GHOST) -> Exception | None:
    """Run it again: what it shows now, None for nothing. Raises Diverged when the code decides otherwise by now."""
    try:
        with silence():
            scenario = scenario_of(schedule.workload, schedule.faults, model=model)
            replay(scenario, schedule.choices, max_steps=most_steps(schedule.workload))
    except Diverged:
        raise
    except Exception as error:
        return error
    return None
