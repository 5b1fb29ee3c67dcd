"""Exploration: one scenario under many schedules, until a property fails, the schedules run out, or none is left.

def scenario(source: ChoiceSource) -> Case:
    system = SimulatedSystem(source, seed=1)
    system.spawn(...); system.send(...); system.start()
    return MyCase(system)                    # with the properties

result = explore(scenario, PCT(seed=1, depth=3), schedules=1000)
if result.failure is not None:
    result.failure.shrunk.save(path)         # and later: replay(scenario, Choices.load(path))
"""

from __future__ import annotations

import gc
import hashlib
import time
import traceback
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from pawl.actors.simulation.case import Case as Case
from pawl.actors.simulation.case import Scenario as Scenario
from pawl.actors.simulation.choice import Choices, ChoiceSource, Diverged, Replay, Suggestion
from pawl.actors.simulation.endless import Endless, Stuck
from pawl.actors.simulation.quiet import collected_between_runs, silence
from pawl.actors.simulation.shrinking import MOST_RUNS, Shrinker, cost
from pawl.actors.simulation.strategies.exhaustive import NotDeterministic, Redundant
from pawl.actors.simulation.strategies.simple import Strategy
from pawl.actors.simulation.system import ActorFailure

MOST_STEPS = 20_000
"""Steps after which a run counts as endless."""
FRAMES = 3
"""Of the traceback of what an actor raised, told to a person."""
MOST_SHOWN = 20
"""Deviations told to a person."""
NO_PROPERTY = (Diverged, NotDeterministic)
"""Errors that say that the exploration went wrong, not the scenario."""


class ActorFailed(Exception):
    """A handler raised, and no fault made it."""

    def __init__(self, failure: ActorFailure) -> None:
        frames = "".join(traceback.format_tb(failure.error.__traceback__)[-FRAMES:]).rstrip()
        super().__init__(
            f"{failure.name}: {failure.error!r}\n{frames}" if frames else f"{failure.name}: {failure.error!r}"
        )
        self.name = failure.name
        self.error = failure.error


class Unfinished(Stuck):
    """At rest, but the case is not done."""


def drive(case: Case, *, max_steps: int = MOST_STEPS, on_state: Callable[[Hashable], None] | None = None) -> None:
    """Run one case to its end. Raises what its checks raise, ActorFailed, Stuck, Endless, or what the source raises."""
    system = case.system
    num_seen = 0
    failures = system.failures
    for _ in range(max_steps):
        if case.done():
            break
        try:
            going_on = system.step()
        except (Redundant, *NO_PROPERTY):
            raise
        except Exception as error:
            # What an actor raised comes before what its end complains of; a part's fault before both.
            if getattr(error, "first", False):
                raise
            _check_failures(case, num_seen)
            raise
        if len(failures) > num_seen:
            num_seen = _check_failures(case, num_seen)
        if not going_on:
            system.check_not_stuck()
            if case.done() is False:
                raise Unfinished("nothing can happen, but the case is not done", system.dump())
            break
        case.stepped()
        if on_state is not None:
            on_state(case.state())
    else:
        case.too_long()
        raise Endless(max_steps, system.dump())
    case.at_rest()


def _check_failures(case: Case, first: int) -> int:
    """Raise ActorFailed for the first failure from number `first` on that is not tolerated; how many there are."""
    failures = case.system.failures
    for failure in failures[first:]:
        if not case.tolerates(failure):
            raise ActorFailed(failure) from failure.error
    return len(failures)


def replay(scenario: Scenario, choices: Choices, *, max_steps: int = MOST_STEPS) -> Case:
    """Run recorded choices again: raises what the recorded run raised, or Diverged. Gives back the case otherwise."""
    case = scenario(Replay(choices))
    drive(case, max_steps=max_steps)
    return case


@dataclass(frozen=True)
class Failure:
    """The first schedule that failed."""

    error: Exception
    schedule: int
    """Its number, from 1."""
    choices: Choices
    shrunk: Choices
    """A schedule that fails in the same way with as few deviations from fair as were found."""
    shrunk_error: Exception
    dump: str
    """The system when the shrunk schedule failed."""

    def __str__(self) -> str:
        before, after = cost(self.choices), cost(self.shrunk)
        deviations = [f"  decision {at}: {label}" for at, _, label in self.shrunk.deviations()]
        deviations[MOST_SHOWN:] = [f"  and {len(deviations) - MOST_SHOWN} more"] * (len(deviations) > MOST_SHOWN)
        return "\n".join(
            [
                f"schedule {self.schedule} failed: {type(self.shrunk_error).__name__}: {self.shrunk_error}",
                f"{before[0]} deviations in {before[1]} decisions, shrunk to {after[0]} in {after[1]}:",
                *deviations,
                *(line for line in self.dump.splitlines() if not line.endswith("waiting: nothing")),
            ]
        )


@dataclass
class Result:
    """What an exploration did."""

    strategy: str
    schedules: int = 0
    """Schedules run, redundant ones included."""
    distinct: int = 0
    """Different lists of choices among them."""
    redundant: int = 0
    """Broken off, because they would have repeated an equivalent one."""
    deliveries: int = 0
    states: int = 0
    """Different states, if the strategy looks at them."""
    confirmed: int = 0
    """Schedules run twice, with the same choices, states and outcome."""
    digest: bytes = b""
    """Of the choices of all schedules and of the outcomes of the confirmed ones: the same wherever they are run."""
    exhausted: bool = False
    """Every schedule was run: nothing is left to find in this scenario."""
    failure: Failure | None = None
    seconds: float = field(default=0.0, compare=False)


class _Run:
    """One schedule of an exploration."""

    def __init__(self, scenario: Scenario, source: ChoiceSource, max_steps: int, *, wants_states: bool) -> None:
        self.states: list[Hashable] = []
        self.error: Exception | None = None
        self.redundant = False
        gc.collect(0)
        self.case = scenario(source)
        try:
            drive(self.case, max_steps=max_steps, on_state=self.states.append if wants_states else None)
        except Redundant:
            self.redundant = True
        except NO_PROPERTY:
            raise
        except Exception as error:
            self.error = error
        self.choices = self.case.system.choices

    @property
    def way(self) -> tuple[str, ...]:
        """In which way it failed; empty if it did not."""
        return () if self.error is None else way_of(self.error)

    def fails_like(self, error: Exception) -> bool:
        """Whether it failed in the same way."""
        return self.way == way_of(error)


def way_of(error: BaseException) -> tuple[str, ...]:
    """What a failure has in common with others of its kind: its class, the property it names if it does (attribute
    `property`), and the same of what the actor raised."""
    inner = way_of(error.error) if isinstance(error, ActorFailed) else ()
    return (type(error).__qualname__, str(getattr(error, "property", None)), *inner)


def never() -> bool:
    """The time is never over."""
    return False


def explore(
    scenario: Scenario,
    strategy: Strategy,
    schedules: int,
    *,
    max_steps: int = MOST_STEPS,
    confirm_every: int = 0,
    most_shrink_runs: int = MOST_RUNS,
    over: Callable[[], bool] = never,
    clock: Callable[[], float] = time.perf_counter,
) -> Result:
    """Run up to `schedules` schedules, until the first one that fails.

    Every `confirm_every`-th is run again from its record, and choices, states after each step, error and outcome are
    compared: raises NotDeterministic where they differ. What actors log meanwhile is dropped. `over` is asked before
    each run; once it says so none begins, shrinking included.
    """
    began = clock()
    result = Result(strategy.name)
    seen: set[bytes] = set()
    whole = hashlib.blake2b(digest_size=16)
    states: set[Hashable] = set()
    with silence(), collected_between_runs():
        while result.schedules < schedules and result.failure is None:
            if not strategy.begin():
                result.exhausted = strategy.complete
                break
            if over():
                break
            result.schedules += 1
            confirm = confirm_every > 0 and result.schedules % confirm_every == 0
            run = _Run(scenario, strategy, max_steps, wants_states=strategy.wants_states or confirm)
            if strategy.wants_states:
                states.update(run.states)
                for state in run.states:
                    strategy.reached(state)
            strategy.ended(run.choices)
            result.deliveries += run.case.system.num_deliveries
            result.redundant += run.redundant
            mark = digest(run.choices)
            seen.add(mark)
            whole.update(mark)
            if confirm and not run.redundant:
                whole.update(_confirm(scenario, run, max_steps))
                result.confirmed += 1
            if run.error is not None:
                most = most_shrink_runs
                result.failure = _failure(scenario, run, run.error, result.schedules, max_steps, most, over)
            del run  # so that it is collected before the next one
    result.distinct, result.states, result.digest = len(seen), len(states), whole.digest()
    result.seconds = clock() - began
    return result


def digest(choices: Choices) -> bytes:
    """Tells schedules apart."""
    return hashlib.blake2b("\n".join(choices.labels).encode(), digest_size=16).digest()


def _confirm(scenario: Scenario, run: _Run, max_steps: int) -> bytes:
    """Run it again; gives back the outcome of both. Raises NotDeterministic."""
    try:
        again = _Run(scenario, Replay(run.choices), max_steps, wants_states=True)
    except Diverged as error:
        raise NotDeterministic(error.position, [error.wanted], error.found) from error
    for at, (first, second) in enumerate(zip(run.states, again.states, strict=False)):
        if first != second:
            raise NotDeterministic(at, [repr(first)], [repr(second)])
    ends = [f"{len(one.states)} steps, {len(one.choices)} decisions, {one.way}" for one in (run, again)]
    if ends[0] != ends[1] or run.choices != again.choices:
        raise NotDeterministic(len(run.choices), ends[:1], ends[1:])
    outcome = run.case.outcome()
    if outcome != again.case.outcome():
        raise NotDeterministic(len(run.choices), ["one outcome"], ["another one"])
    return outcome


def _failure(
    scenario: Scenario,
    run: _Run,
    error: Exception,
    schedule: int,
    max_steps: int,
    most_shrink_runs: int,
    over: Callable[[], bool],
) -> Failure:
    smallest = run

    def attempt(indices: Sequence[int]) -> Choices | None:
        nonlocal smallest
        if over():
            return None
        tried = _Run(scenario, Suggestion(indices), max_steps, wants_states=False)
        if not tried.fails_like(error):
            return None
        if cost(tried.choices) < cost(smallest.choices):
            smallest = tried
        return tried.choices

    shrinker = Shrinker(run.choices, attempt, most_shrink_runs)
    shrinker.shrink()
    assert smallest.error is not None
    return Failure(
        error=error,
        schedule=schedule,
        choices=run.choices,
        shrunk=smallest.choices,
        shrunk_error=smallest.error,
        dump=smallest.case.system.dump(),
    )
