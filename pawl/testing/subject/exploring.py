"""Exploration of one workload of a subject, joint shrinking of workload and schedule, and counterexamples in files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from pawl.actors.simulation.case import Case, Scenario
from pawl.actors.simulation.choice import Choices, ChoiceSource, Diverged, Replay
from pawl.actors.simulation.exploration import Failure, Result, drive, explore, never, way_of
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.shrinking import MOST_RUNS
from pawl.actors.simulation.strategies.exhaustive import Exhaustive, NotDeterministic, Reduction
from pawl.actors.simulation.strategies.simple import Strategy
from pawl.testing.exploring import STRATEGIES, brief
from pawl.testing.plugins import KeptPart, kept_part
from pawl.testing.smaller import smallest
from pawl.testing.subject.driver import SubjectRun
from pawl.testing.subject.guarded import LIMIT_S
from pawl.testing.subject.port import Subject
from pawl.testing.subject.registry import load_subject
from pawl.testing.subject.watchdog import note
from pawl.testing.subject.workload import Workload, smaller

SCHEDULES_OF_A_SMALLER_ONE = 20
MOST_WORKLOADS = 250
"""Smaller workloads tried to shrink one that fails: each takes milliseconds."""
SHRINK_LIMIT_S = 0.5
"""Seconds after which a call counts as hanging while what hangs is made smaller."""


@dataclass
class Seen:
    """What runs have come to, together."""

    runs: int = 0
    """Without a violation, second ones included."""
    steps: int = 0
    calls: int = 0
    reached: Counter[str] = field(default_factory=Counter)
    """What happened -> runs in which it did."""
    tells: set[str] = field(default_factory=set)
    """What the subject tells of itself."""


class SubjectCase(Case):
    """One run of a subject."""

    system: SubjectRun

    def __init__(self, system: SubjectRun, seen: Seen) -> None:
        super().__init__(system)
        self._seen = seen

    def at_rest(self) -> None:
        run, seen = self.system, self._seen
        seen.runs += 1
        seen.steps += run.num_steps
        seen.calls += run.num_deliveries
        seen.reached.update(run.reached)

    def outcome(self) -> bytes:
        return repr(self.system.subject.calls).encode()


class Found(NamedTuple):
    """A workload and a schedule under which a property of the subject fails."""

    kind: type[Subject]
    name: str
    """By which the subject was loaded."""
    workload: Workload
    failure: Failure
    strategy: str
    seed: int
    """Of the strategy."""

    @property
    def error(self) -> Exception:
        return self.failure.shrunk_error

    @property
    def violated(self) -> str:
        """The one that fails."""
        return property_of(self.error)

    def save(self, path: Path) -> None:
        """Write all that `replay_found` needs."""
        choices = self.failure.shrunk
        choices.facts.update(
            subject=self.name,
            workload=msgspec.json.encode(self.workload).decode(),
            error=str(self.error),
            parts=msgspec.json.encode(kept_part(self.name)).decode(),
        )
        choices.save(path)

    def run(self) -> SubjectRun:
        """The counterexample once more."""
        return run_again(self.kind, self.workload, self.failure.shrunk)[0]

    def __str__(self) -> str:
        return "\n".join([f"{self.error}", described(self.workload), self.failure.dump])


def described(workload: Workload) -> str:
    """What a run is made of, before its calls."""
    requests = [f"  request {number}: {brief(arrival)}" for number, arrival in enumerate(workload.arrivals, 1)]
    return "\n".join([f"  made with: {brief(workload.settings)}", *requests, "what was called, and what came of it:"])


def property_of(error: BaseException) -> str:
    """The property that an error speaks of, or its class."""
    return str(getattr(error, "property", type(error).__name__))


def scenario_of(
    kind: type[Subject], workload: Workload, *, seen: Seen | None = None, limit_s: float = LIMIT_S
) -> Scenario:
    """What `pawl.actors.simulation.exploration.explore` takes. What runs come to is added to `seen`."""
    counts = Seen() if seen is None else seen

    def scenario(source: ChoiceSource) -> Case:
        note("\n" + described(workload), anew=True)
        run = SubjectRun(kind, workload, source, limit_s=limit_s, tells=counts.tells)
        return SubjectCase(run, counts)

    return scenario


def strategy_of(name: str, seed: int) -> Strategy:
    """By its name on the command line. Nothing is known about which calls of a subject are independent."""
    return Exhaustive(reduction=Reduction.NONE) if name == "exhaustive" else STRATEGIES[name](seed)


def explore_subject(
    kind: type[Subject],
    workload: Workload,
    strategy: str = "pct",
    schedules: int = 20,
    *,
    name: str = "",
    seed: int = 0,
    confirm_every: int = 0,
    over: Callable[[], bool] = never,
    seen: Seen | None = None,
) -> tuple[Result, Found | None]:
    """Run the workload under up to `schedules` schedules, until the first that fails; `shrunk` makes it smaller.

    Raises NotDeterministic where a schedule that is run twice, each `confirm_every`-th, comes out differently.
    """
    result = explore(
        scenario_of(kind, workload, seen=seen),
        strategy_of(strategy, seed),
        schedules,
        confirm_every=confirm_every,
        most_shrink_runs=0,
        over=over,
    )
    failure = result.failure
    return result, None if failure is None else Found(kind, name, workload, failure, strategy, seed)


def shrunk(found: Found, *, over: Callable[[], bool] = never) -> Found:
    """A workload that asks less, as long as the same property fails in it, and then a schedule with fewer choices that
    are not the fair one. Ends early, with the smallest so far, once `over` says so."""

    def less(workload: Workload) -> list[Workload]:
        return list(smaller(workload, found.kind.offers))

    def fails(workload: Workload, before: Failure) -> Failure | None:
        return _fails(found, workload, most=0, over=over)

    workload, failure = smallest(found.workload, found.failure, less, fails, most=MOST_WORKLOADS, over=over)
    again = _fails(found, workload, most=MOST_RUNS, over=over, schedules=failure.schedule)
    return found._replace(workload=workload, failure=again or failure)


def _fails(
    found: Found,
    workload: Workload,
    *,
    most: int,
    over: Callable[[], bool],
    schedules: int = SCHEDULES_OF_A_SMALLER_ONE,
) -> Failure | None:
    """A failure of the kind that was found, in this workload."""
    try:
        failure = explore(
            scenario_of(found.kind, workload, limit_s=SHRINK_LIMIT_S if found.violated == "returns" else LIMIT_S),
            strategy_of(found.strategy, found.seed),
            schedules,
            most_shrink_runs=most,
            over=over,
        ).failure
    except NotDeterministic:
        return None
    return failure if failure is not None and way_of(failure.error) == way_of(found.failure.error) else None


def run_again(kind: type[Subject], workload: Workload, choices: Choices) -> tuple[SubjectRun, Exception | None]:
    """Play choices back: the run, and what it shows; None for nothing. Raises Diverged where the subject decides
    otherwise by now."""
    case = scenario_of(kind, workload)(Replay(choices))
    assert isinstance(case, SubjectCase)
    try:
        with silence():
            drive(case)
    except Diverged:
        raise
    except Exception as error:
        return case.system, error
    return case.system, None


class Saved(NamedTuple):
    """A counterexample from a file."""

    name: str
    workload: Workload
    choices: Choices
    error: str
    """What it showed when it was saved."""
    part: KeptPart | None


def load_found(path: Path) -> Saved | None:
    """What `Found.save` wrote; None for choices that are of no subject. Raises OSError, or ValueError for a file that
    holds none."""
    choices = Choices.load(path)
    facts = choices.facts
    if "subject" not in facts:
        return None
    workload = msgspec.json.decode(facts.get("workload", ""), type=Workload)
    part = msgspec.json.decode(facts.get("parts", "null"), type=KeptPart | None)
    return Saved(facts["subject"], workload, choices, facts.get("error", ""), part)


def replay_found(saved: Saved) -> tuple[SubjectRun, Exception | None]:
    """Run it again. Raises ValueError where the subject cannot be loaded, and Diverged."""
    return run_again(load_subject(saved.name, saved.part), saved.workload, saved.choices)
