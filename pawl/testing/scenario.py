"""A recorded run as a scenario of the simulator: the same requests to a server of the same size, with the ghost.

What a trace says of each request becomes an `Arrival`: its prompt, how many tokens it asked for and got, who ended it,
and how many output tokens all clients had been told when it came (work takes no virtual time, so that is what "at the
same point" means). Defects of scheduling and memory show again, under some schedule. What cannot be carried over:

    tokens      those of a model that the ghost does not know are renamed. Prompts share exactly the beginnings that
                they shared; that a prompt went on with what another request was answered is lost
    sampling    a request is greedy or drawn at temperature 1; penalties, scores and stop tokens do not matter to memory
    time        deadlines and how long a step took; a request that timed out is one whose client leaves
    tiers       of the cache below the device
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from pawl.actors.simulation.faults import Faults
from pawl.gpu.ghost.language import START_TOKEN
from pawl.gpu.weights.strangers import content_of
from pawl.lifecycle.properties.base import Violation
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import (
    Flushed,
    Record,
    Started,
    StepCommitted,
    StepRolledBack,
    Submitted,
    Transition,
    int32s,
    num_tokens,
    uint8s,
)
from pawl.lifecycle.states import FINISH_CAUSES, Cause, Event
from pawl.loops.orders.cache import FlushCache
from pawl.loops.select import LoopConfig
from pawl.testing.exploring import Found, explore_workload
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Control, Workload

FORMAT = "pawl scenario 1"
MOST_REQUESTS = 32
MOST_STRIKES = 2
SCHEDULES_EACH = 10
TRIED = ("fair", "pct", "random", "pos")
"""Strategies that take turns until the property fails."""


class NoScenario(Exception):
    """The trace does not hold what a scenario needs."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds."""

    format: str = FORMAT
    workload: Workload
    faults: Faults = Faults()
    property: str | None = None
    """The first that did not hold in the recorded run; None: all did."""
    explanation: str = ""
    recorded_model: str = ""

    def save(self, path: Path) -> None:
        """As JSON."""
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Scenario:
        """What `save` wrote. Raises OSError, or ValueError for a file that holds no scenario."""
        made = msgspec.json.decode(content_of(path, ValueError), type=cls)
        if made.format != FORMAT:
            raise ValueError(f"its format is {made.format!r}, not {FORMAT!r}")
        return made


class _Life(msgspec.Struct):
    """One request, as far as it has been read."""

    submitted: Submitted
    after_tokens: int
    """Output tokens of all requests before it came."""
    cause: Cause = Cause.NONE
    num_output: int = 0


class _Reader:
    """Goes through a trace, up to the first record that breaks a property."""

    def __init__(self) -> None:
        self.started: Started | None = None
        self.lives: dict[int, _Life] = {}
        self.flushes: list[int] = []
        """Output tokens of all requests before each."""
        self.num_lost = 0
        """Times that steps were lost."""
        self.violation: Violation | None = None
        self._monitor = Monitor()
        self._num_tokens = 0
        self._losing = False

    def read(self, records: Iterable[Record]) -> None:
        for record in records:
            self._advance(record)
            found = self._monitor.observe(record)
            if found:
                self.violation = found[0]
                return
        self.violation = next(iter(self._monitor.finish()), None)

    def _advance(self, record: Record) -> None:
        match record:
            case Started():
                self.started = record
            case Submitted():
                self.lives[record.request] = _Life(record, self._num_tokens)
            case Transition(event=Event.FINISH | Event.ABORT) if record.request in self.lives:
                life = self.lives[record.request]
                life.cause, life.num_output = record.cause, record.num_output or 0
            case StepCommitted():
                self._num_tokens += int(num_tokens(uint8s(record.events), record.counts).sum())
                self._losing = False
            case StepRolledBack():
                # A lost step takes those behind it along.
                self.num_lost += not self._losing
                self._losing = True
            case Flushed():
                self.flushes.append(self._num_tokens)
            case _:
                pass


def recorded_scenario(records: Iterable[Record], *, most_requests: int = MOST_REQUESTS) -> Scenario:
    """The scenario of a trace: its requests up to the first violation, the last `most_requests` of them. Raises
    NoScenario."""
    reader = _Reader()
    reader.read(records)
    if reader.started is None or not reader.lives:
        raise NoScenario("the trace does not begin with how the engine was set up, or has no request")
    lives = list(reader.lives.values())[-most_requests:]
    first = lives[0].after_tokens
    prompts = [tuple(int32s(life.submitted.tokens).tolist()) for life in lives]
    if any(token >= START_TOKEN for prompt in prompts for token in prompt):
        prompts = renamed(prompts)
    salts = {life.submitted.namespace: "" for life in lives}
    for number, namespace in enumerate(salts):
        salts[namespace] = f"salt {number}" if number else ""
    arrivals = tuple(
        _arrival(life, prompt, salts[life.submitted.namespace], life.after_tokens - first)
        for life, prompt in zip(lives, prompts, strict=True)
    )
    controls = tuple(
        Control(body=FlushCache(), after_tokens=count - first) for count in reader.flushes if count >= first
    )
    violation = reader.violation
    return Scenario(
        workload=Workload(arrivals=arrivals, shape=_shape(reader.started), controls=controls),
        faults=Faults(strike=min(reader.num_lost, MOST_STRIKES)),
        property=None if violation is None else violation.property,
        explanation="" if violation is None else violation.explanation,
        recorded_model=reader.started.model,
    )


def _arrival(life: _Life, prompt: tuple[int, ...], salt: str, after_tokens: int) -> Arrival:
    submitted, count = life.submitted, life.num_output
    stopped = life.cause in FINISH_CAUSES and life.cause is not Cause.LENGTH
    sampling = submitted.sampling
    return Arrival(
        prompt=prompt,
        max_new_tokens=sampling.max_new_tokens,
        after_tokens=after_tokens,
        leaves_after=count if life.cause in (Cause.CLIENT, Cause.DISCONNECT, Cause.TIMEOUT) else None,
        stop_after=count if stopped and count else None,
        embed=sampling.embed,
        seed=None if sampling.greedy else sampling.seed,
        priority=submitted.priority,
        salt=salt,
    )


def _shape(started: Started) -> Shape:
    """The server's size. Raises NoScenario when it is not recorded."""
    try:
        config = msgspec.convert(started.config["loop"], LoopConfig)
    except (KeyError, msgspec.ValidationError) as error:
        raise NoScenario(f"the trace does not say how its loop was set up: {error}") from error
    names = {field.name for field in msgspec.structs.fields(Shape)}
    given = msgspec.structs.asdict(config)
    if config.speculation is not None:
        given |= msgspec.structs.asdict(config.speculation) | {"speculate": "ngram"}
    return Shape(**{name: value for name, value in given.items() if name in names})


def renamed(prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Other tokens for the prompts, which the ghost knows: each two share as long a beginning as they did. Of more than
    256 different continuations of one beginning some become the same."""
    names: dict[tuple[int, int], tuple[int, int]] = {}
    """(beginning, token) -> (the longer beginning, its new last token); beginnings are numbered, 0 is the empty one."""
    branches: Counter[int] = Counter()
    found = []
    for prompt in prompts:
        beginning, tokens = 0, []
        for token in prompt:
            place = beginning, token
            if place not in names:
                names[place] = len(names) + 1, branches[beginning] % 256
                branches[beginning] += 1
            beginning, name = names[place]
            tokens.append(name)
        found.append(tuple(tokens))
    return found


class Shown(msgspec.Struct, frozen=True):
    """What came of exploring a scenario."""

    schedules: int
    found: Found | None
    """A schedule under which the property that was broken in the recorded run fails (any, if none was)."""
    others: tuple[str, ...]
    """Names of other properties that failed on the way."""


def show(scenario: Scenario, schedules: int, *, seed: int = 0, begins: Callable[[], None] = lambda: None) -> Shown:
    """Explore the scenario until the recorded property fails, for so many schedules; `begins` is called before each.
    Nothing is made smaller."""

    def over() -> bool:
        begins()
        return False

    run, number = 0, 0
    others: list[str] = []
    while run < schedules:
        outcome = explore_workload(
            scenario.workload,
            TRIED[number % len(TRIED)],
            min(SCHEDULES_EACH, schedules - run),
            seed=seed + number,
            faults=scenario.faults,
            shrink=False,
            over=over,
        )
        run += outcome.result.schedules
        number += 1
        if outcome.found is None:
            continue
        error = outcome.found.failure.error
        name = str(getattr(error, "property", type(error).__name__))
        if scenario.property in (None, name):
            return Shown(run, outcome.found, tuple(others))
        others.append(name)
    return Shown(run, None, tuple(others))
