"""One replica of a simulated engine: its runner, its records in memory, and what judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import msgspec

from pawl.actors.linker import Dialer
from pawl.actors.names import Names
from pawl.actors.recorder import Recorder
from pawl.actors.simulation.system import SimulatedSystem
from pawl.actors.weight_groups import Trainers
from pawl.build.ghost import GhostSource
from pawl.build.parts import Parts
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.grammar import GrammarIsAFold
from pawl.lifecycle.properties.monitor import PROPERTIES, Monitor
from pawl.lifecycle.records import Checkpoint, Record, Started
from pawl.loops.decision_log import OneDecisionLog
from pawl.loops.policy import POLICIES
from pawl.loops.recomputed import Recomputed
from pawl.loops.select import LoopConfig
from pawl.memory.prefix.events import CacheEvent, Mirror
from pawl.memory.prefix.select import KINDS
from pawl.memory.prefix.sliding import SlidingCache
from pawl.memory.violation import MemoryViolation
from pawl.testing.caches import watch_cache, watch_room
from pawl.testing.costs import watch_times
from pawl.testing.device import SimulatedDevice
from pawl.testing.expectations import PropertyFailed, simulated_fold, simulated_grammars, vocabulary
from pawl.testing.models import Model, storage_of
from pawl.testing.ordering import watch_admission, watch_policy
from pawl.testing.own_scheduler import OwnScheduler
from pawl.testing.parts import Checked, own_parts
from pawl.testing.profiles import simulated_profiler
from pawl.testing.properties import USUAL_LIMIT, BoundedOvertaking, UsageTold
from pawl.testing.ranks import RankHost, simulated_group
from pawl.testing.reuse import WatchedGhost
from pawl.testing.shape import Shape
from pawl.testing.stores import TiersAsStated
from pawl.testing.timely import TimelyScheduler
from pawl.testing.trainers import LIMIT_S, SimulatedMember
from pawl.testing.uses import watch_uses

MakeProperties: TypeAlias = Callable[[Model], Sequence[Property]]


def quick_properties(model: Model) -> Sequence[Property]:
    """Every property that records decide, but those for which the run is repeated."""
    return [*(make() for make in PROPERTIES), GrammarIsAFold(simulated_fold)]


def record_properties(model: Model) -> Sequence[Property]:
    """Every property that records decide: its decisions are made again, and its words computed again by `model`."""
    return [*quick_properties(model), OneDecisionLog(), Recomputed(model.compute)]


class MemoryTrace:
    """Stands where a TraceWriter does: keeps the records."""

    pending = 0
    trouble = ""
    num_lost_total = 0

    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, record: Record) -> None:
        self.records.append(record)

    def flush(self) -> None: ...

    def close(self) -> None: ...


class SimulatedReplica:
    """Its parts, and once `adopt` was called its actors."""

    def __init__(
        self,
        system: SimulatedSystem,
        shape: Shape,
        names: Names,
        properties: MakeProperties,
        model: Model,
        dialer: Dialer | None = None,
        rank_host: RankHost | None = None,
    ) -> None:
        """`rank_host` has one of its ranks, where they live on several."""
        config = shape.loop_config(names.role)
        self.names = names
        self.monitor = Monitor(properties(model))
        self.runner = model.runner(config, names.replica)
        self.trace = MemoryTrace()
        recorder: Any = self.trace
        self._storage = storage_of(shape, config, self.runner, system, names)
        started = _started(config, model.name, names)
        self.parts = Parts(
            source=GhostSource(),
            vocabulary=vocabulary(),
            runner=SimulatedDevice(self._behind_ranks(system, shape, model, rank_host), system, shape),
            loop_config=config,
            recorder=Recorder(recorder, started, names),
            started=started,
            storage=self._storage,
            grammars=simulated_grammars(),
            profiler=simulated_profiler(system.strikes),
            dialer=dialer,
            trainers=Trainers(limit_s=LIMIT_S, make_member=partial(SimulatedMember, system.strikes)),
            names=names,
        )
        self.mirror = Mirror(config.page_size)
        """The prefix cache, as its events tell it."""
        self.usage = UsageTold()
        self.monitor.properties.append(self.usage)
        limit = overtaking_limit(config.policy)
        if limit is not None:
            self.monitor.properties.append(BoundedOvertaking(limit))
        self.actors: dict[str, Any] = {}
        self.scheduler: TimelyScheduler
        self.lost = False
        """An actor of it is gone, and others do its work."""
        self.left = False
        """It was asked to leave, and its actors end; what they keep of what nobody waits for goes with them."""
        self._system = system
        self._model = model
        self._ghost = self.runner if isinstance(self.runner, WatchedGhost) else None
        self._num_judged = 0
        self._wrong_of_cache: list[tuple[str, str]] = []
        self._own: list[Checked] = []
        """Parts that are the user's."""

    def _behind_ranks(self, system: SimulatedSystem, shape: Shape, model: Model, host: RankHost | None) -> Any:
        """What the worker drives: the runner itself, or a group of two that are told the same."""
        if shape.ranks_of(self.names.role) == 1 or not isinstance(self.runner, Ghost):
            return self.runner
        ghosts = [self.runner, model.runner(shape.loop_config())]
        return simulated_group(ghosts, system.strikes, self._diverged, lambda: system.now_s, host)

    def _diverged(self, told: str) -> None:
        self._report("one_decision_log", told, None)

    def adopt(self, actors: dict[str, Any], report: Callable[[str, str, int | None], None]) -> None:
        """These are its actors; `report` is told what they find wrong with themselves."""
        self.actors = actors
        self.scheduler = actors[self.names.scheduler]
        self.scheduler.report = report
        if isinstance(self.scheduler, OwnScheduler):
            self.scheduler.on_fault = self._system.report
        self._report = report
        self.scheduler.loop.feed.follow(self._follow_cache)
        self._own = own_parts(self.scheduler.loop)
        for part in self._own:
            part.report = self._system.report
        watch_policy(self.scheduler.loop, report)
        watch_admission(self.scheduler.loop, report)
        watch_times(self.scheduler.loop, report)
        memory, config = self.scheduler.loop.memory, self.scheduler.config
        cache = memory.cache
        if KINDS[config.cache].ordered and not isinstance(cache, Checked):
            exact = not isinstance(cache, SlidingCache)
            wrong = lambda *told: self._wrong_of_cache.append(told)  # noqa: E731
            books = watch_cache(cache, config.eviction, wrong, exact=exact)
            watch_room(memory, books)
            books.uses = watch_uses(self.scheduler.loop, wrong)

    def _follow_cache(self, events: Sequence[CacheEvent]) -> None:
        try:
            self.mirror.replay(events)
        except MemoryViolation as violation:
            self._report("observability_conservation", f"events of the cache: {violation}", None)

    def stepped(self) -> None:
        """Judge the records that are new."""
        if len(self.trace.records) > self._num_judged:
            for record in self.trace.records[self._num_judged :]:
                self._num_judged += 1
                raise_first(self.monitor.observe(record), self._own)
        if self._ghost is not None and self._ghost.faults:
            raise PropertyFailed("read_after_commit", str(self._ghost.faults[0]))
        if self._ghost is not None and self._ghost.carried:
            raise PropertyFailed("batch_independence", self._ghost.carried[0])
        if self._storage is not None and self._storage.store.wrong:
            raise PropertyFailed(TiersAsStated.name, self._storage.store.wrong[0])
        self.scheduler.loop.feed.collect()

    def judge_whole(self) -> None:
        """What can be said of the records once all are there. A run that was not judged to its end has failed."""
        raise_first(self.monitor.finish(), self._own)
        if not self.monitor.judging:
            raise PropertyFailed("well_formed", "the run was not judged to its end")
        for each in self.monitor.properties:
            if each.unjudged:
                raise PropertyFailed(each.name, each.unjudged)
        # Last, as a trace shows what comes of it: a recorded run must fail as it did.
        for name, text in self._wrong_of_cache:
            raise PropertyFailed(name, text)
        self._judge_the_rest()

    def _judge_the_rest(self) -> None:
        """From a checkpoint in the middle of the run, as if what came before it had been dropped."""
        at = [n for n, each in enumerate(self.trace.records) if isinstance(each, Checkpoint) and each.state is not None]
        if at:
            rest = Monitor(record_properties(self._model))
            for record in self.trace.records[at[len(at) // 2] :]:
                rest.observe(record)
            rest.finish()
            for violation in rest.violations:
                raise PropertyFailed(
                    violation.property, f"from a checkpoint: {violation.explanation}", violation.request
                )


def raise_first(violations: Sequence[Violation], own: Sequence[Checked] = ()) -> None:
    """Raises PropertyFailed for the first of these, if there are any. Where decisions came out differently, one of the
    user's `own` parts may be why."""
    if violations:
        first = violations[0]
        suspected = ""
        if own and first.property == OneDecisionLog.name:
            cause = "decides by more than it is given, as by what an earlier run left in its class"
            suspected = f"look whether {' or '.join(map(str, own))} {cause}; "
        raise PropertyFailed(first.property, f"{suspected}{first.explanation}", first.request)


def overtaking_limit(name: str) -> int | None:
    """Later requests of equal priority that the policy may admit first, None for any number: its own `max_overtaken`,
    or the usual limit where it states none."""
    policy = POLICIES[name](0)
    limit: int | None = getattr(policy, "max_overtaken", USUAL_LIMIT)
    return limit


def _started(config: LoopConfig, model: str, names: Names) -> Started:
    """The first record."""
    of_several = {"replica": names.replica} if names.routed else {}
    return Started(
        version="simulated",
        model=model,
        config={"loop": msgspec.to_builtins(config), "backend": model, **of_several},
        num_pages=config.num_pages,
        page_size=config.page_size,
        num_slots=config.max_running,
        seed=0,
        time=0.0,
        wall=0.0,
    )
