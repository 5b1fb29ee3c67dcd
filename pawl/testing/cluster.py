"""The whole engine in a simulator: every actor is the real one, the model is the ghost, clients are part of the run.

    clients (inside the gateway's turn) ── the actors of `pawl.build.wiring` ── recorder ──► records in memory

After every step the new records are judged by every property; at rest the clients' outputs are compared with what the
prompts imply, the books of every actor must balance, and the run is replayed from its own records.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, ClassVar, TypeAlias

import msgspec

from pawl.actors.codec import make_codec
from pawl.actors.control import row_of
from pawl.actors.detokenizer import Detokenizer, OutputsRefused
from pawl.actors.grammar import GrammarCompiler
from pawl.actors.names import NAMES
from pawl.actors.recorder import Recorder
from pawl.actors.runtime.actor import Overflow
from pawl.actors.simulation.choice import ChoiceSource
from pawl.actors.simulation.exploration import Case
from pawl.actors.simulation.faults import Faults, InjectedCrash
from pawl.actors.simulation.system import ActorFailure, SimulatedSystem
from pawl.actors.weight_groups import Trainers
from pawl.build.ghost import GhostSource
from pawl.build.parts import Parts
from pawl.build.wiring import engine_actors, spawn_all, stop_order
from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.grammar import GrammarIsAFold
from pawl.lifecycle.properties.monitor import PROPERTIES, Monitor
from pawl.lifecycle.records import ENCODER, Checkpoint, Record, Started
from pawl.loops.decision_log import OneDecisionLog
from pawl.loops.policy import POLICIES
from pawl.loops.recomputed import Recomputed
from pawl.loops.select import LoopConfig
from pawl.memory.prefix.events import CacheEvent, Mirror
from pawl.memory.violation import MemoryViolation
from pawl.testing.at_rest import EndChecks
from pawl.testing.clients import FrontDesk
from pawl.testing.expectations import PropertyFailed, simulated_fold, simulated_grammars, vocabulary
from pawl.testing.models import GHOST, Model, SimulatedDevice, storage_of
from pawl.testing.parts import own_parts
from pawl.testing.plugins import SCHEDULERS
from pawl.testing.profiles import simulated_profiler
from pawl.testing.properties import USUAL_LIMIT, BoundedOvertaking, UsageTold
from pawl.testing.reached import events_of
from pawl.testing.reuse import WatchedGhost
from pawl.testing.timely import TimelyScheduler, timely
from pawl.testing.trainers import LIMIT_S, SimulatedMember
from pawl.testing.workload import Workload

NO_FAULTS = Faults()
CRASHES = (InjectedCrash, OutputsRefused)
PATIENCE_S = 120.0
"""Virtual seconds after which a request that set no limit of its own is given up. Work takes a fraction of that at the
most, so only one that is never served gets there."""


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


MakeProperties: TypeAlias = Callable[[Model], Sequence[Property]]


def quick_properties(model: Model) -> Sequence[Property]:
    """Every property that records decide, but those for which the run is repeated."""
    return [*(make() for make in PROPERTIES), GrammarIsAFold(simulated_fold)]


def record_properties(model: Model) -> Sequence[Property]:
    """Every property that records decide: its decisions are made again, and its words computed again by `model`."""
    return [*quick_properties(model), OneDecisionLog(), Recomputed(model.compute)]


class Cluster(Case):
    """One engine, its clients, and what is checked."""

    make_checks: ClassVar[type[EndChecks]] = EndChecks
    make_desk: ClassVar[type[FrontDesk]] = FrontDesk
    system: SimulatedSystem

    def __init__(
        self, system: SimulatedSystem, workload: Workload, properties: Sequence[Property], model: Model
    ) -> None:
        super().__init__(system)
        self.model = model
        self.workload = workload
        self.monitor = Monitor(properties)
        self.checks = self.make_checks(self)
        shape = workload.shape
        config = shape.loop_config()
        self.runner = model.runner(config)
        self.trace = MemoryTrace()
        recorder: Any = self.trace
        started = _started(config, model.name)
        parts = Parts(
            source=GhostSource(),
            vocabulary=vocabulary(),
            runner=SimulatedDevice(self.runner, system, shape),
            loop_config=config,
            recorder=Recorder(recorder, started),
            started=started,
            storage=storage_of(shape, config, self.runner, system.strikes),
            grammars=simulated_grammars(),
            profiler=simulated_profiler(system.strikes),
            trainers=Trainers(limit_s=LIMIT_S, make_member=partial(SimulatedMember, system.strikes)),
        )
        self.desk = self.make_desk(workload, config.max_running + config.max_queued, model.expectations)
        self.desk.report = self._report
        make_scheduler = timely(SCHEDULERS[shape.scheduler])
        specs = engine_actors(parts, self.desk, PATIENCE_S, make_scheduler=make_scheduler)
        if shape.mailbox is not None:
            # What holds its senders back has room for the ends of all requests, as in `engine_actors`.
            ends = len(workload.arrivals) + 1
            small = {NAMES.tokenizer: shape.mailbox, NAMES.scheduler: shape.mailbox, NAMES.detokenizer: ends}
            specs = tuple(spec._replace(capacity=small.get(spec.name, spec.capacity)) for spec in specs)
        self._stop_order = stop_order(specs)
        self.actors: dict[str, Any] = {spec.name: spec.actor for spec in specs}
        self.scheduler: TimelyScheduler = self.actors[NAMES.scheduler]
        self.scheduler.report = self._report
        self.detokenizer: Detokenizer = self.actors[NAMES.detokenizer]
        self.grammar: GrammarCompiler = self.actors[NAMES.grammar]
        self.mirror = Mirror(config.page_size)
        """The prefix cache, as its events tell it."""
        self.scheduler.loop.feed.follow(self._follow_cache)
        self.usage = UsageTold()
        self.monitor.properties.append(self.usage)
        for part in own_parts(self.scheduler.loop):
            part.report = system.report
        limit = overtaking_limit(config.policy)
        if limit is not None:
            self.monitor.properties.append(BoundedOvertaking(limit))
        spawn_all(system, specs)
        system.start()
        self._ghost = self.runner if isinstance(self.runner, WatchedGhost) else None
        self.reached: Counter[str] | None = None
        """Where the events of the run are counted once it has held."""
        self._num_judged = 0
        self._horizon_s = horizon(workload, system.faults.faults)
        self._closing = False

    # ---- checks ----

    def _report(self, name: str, explanation: str, request: int | None) -> None:
        self.system.report(PropertyFailed(name, explanation, request))

    def _raise(self, violations: Sequence[Violation]) -> None:
        if violations:
            first = violations[0]
            raise PropertyFailed(first.property, first.explanation, first.request)

    def stepped(self) -> None:
        records = self.trace.records
        while self._num_judged < len(records):
            record = records[self._num_judged]
            self._num_judged += 1
            self._raise(self.monitor.observe(record))
        if self._ghost is not None and self._ghost.faults:
            raise PropertyFailed("read_after_commit", str(self._ghost.faults[0]))
        if self._ghost is not None and self._ghost.carried:
            raise PropertyFailed("batch_independence", self._ghost.carried[0])
        self.scheduler.loop.feed.collect()

    def _follow_cache(self, events: Sequence[CacheEvent]) -> None:
        try:
            self.mirror.replay(events)
        except MemoryViolation as violation:
            self._report("observability_conservation", f"events of the cache: {violation}", None)

    def done(self) -> bool | None:
        if self.system.now_s > self._horizon_s and not self._closing and not self.system.network.ready:
            # Heartbeats go on for ever: that nothing else happens any more has to be seen from the clock.
            self.system.check_not_stuck()
            return True
        if not self._closing and (self.desk.wants_stop or NAMES.gateway in self.crashed):
            self._stop()
        if not self._closing and self.desk.at_rest and not self.system.num_waiting() and not self._at_work:
            self.checks.check_rest()
            self._stop()
        return None

    def _stop(self) -> None:
        self._closing = True
        self.system.begin_stop(self._stop_order)

    @property
    def _at_work(self) -> bool:
        """A step that nobody waits for any more is on the device, or what an actor has to say is to come: no message
        tells."""
        unsettled = any(driver.cell.unsettled for driver in self.system.drivers)
        return unsettled or (bool(self.scheduler.loop.in_flight) and not self.crashed)

    def at_rest(self) -> None:
        self.stepped()
        self.checks.check_end()
        if self.reached is not None:
            self.reached.update(events_of(self))

    def judge_whole(self) -> None:
        """What can be said of the records once all are there. A run that was not judged to its end has failed."""
        self._raise(self.monitor.finish())
        if not self.monitor.judging:
            raise PropertyFailed("well_formed", "the run was not judged to its end")
        for each in self.monitor.properties:
            if each.unjudged:
                raise PropertyFailed(each.name, each.unjudged)
        self._judge_the_rest()

    def _judge_the_rest(self) -> None:
        """From a checkpoint in the middle of the run, as if what came before it had been dropped."""
        at = [n for n, each in enumerate(self.trace.records) if isinstance(each, Checkpoint) and each.state is not None]
        if at:
            rest = Monitor(record_properties(self.model))
            for record in self.trace.records[at[len(at) // 2] :]:
                rest.observe(record)
            rest.finish()
            for violation in rest.violations:
                raise PropertyFailed(
                    violation.property, f"from a checkpoint: {violation.explanation}", violation.request
                )

    @property
    def crashed(self) -> set[str]:
        """Actors that were made to fail, or could not go on without one of those, and are gone."""
        return {failure.name for failure in self.system.failures if isinstance(failure.error, CRASHES)}

    @property
    def num_held_back(self) -> int:
        """Actors whose full mailboxes have held their senders back."""
        mailboxes = [driver.cell.mailbox for driver in self.system.drivers]
        return sum(box.overflow is Overflow.HOLD and box.most_data > box.capacity for box in mailboxes)

    def tolerates(self, failure: ActorFailure) -> bool:
        # Outputs cannot be dropped: without a gateway their sender fails.
        return isinstance(failure.error, InjectedCrash) or (
            isinstance(failure.error, OutputsRefused) and NAMES.gateway in self.crashed
        )

    # ---- for strategies ----

    def outcome(self) -> bytes:
        """A digest of all records: what was decided, when, about which memory."""
        found = hashlib.blake2b(digest_size=16)
        for record in self.trace.records:
            found.update(ENCODER.encode(record))
        return found.digest()

    def state(self) -> Hashable:
        """Requests by state, memory by class, and what waits where."""
        loop = self.scheduler.loop
        pages = loop.memory.pages
        return (
            tuple(loop.table.state[loop.table.live_rows()].tolist()),
            (pages.free, pages.owned, pages.cached, pages.deferred),
            len(loop.in_flight),
            super().state(),
        )


def _started(config: LoopConfig, model: str) -> Started:
    """The first record."""
    return Started(
        version="simulated",
        model=model,
        config={"loop": msgspec.to_builtins(config), "backend": model},
        num_pages=config.num_pages,
        page_size=config.page_size,
        num_slots=config.max_running,
        seed=0,
        time=0.0,
        wall=0.0,
    )


def horizon(workload: Workload, faults: Faults) -> float:
    """Virtual seconds after which no client can have anything to wait for any more: were all requests sent one after
    the other, each would have been answered or given up."""
    arrivals, controls = workload.arrivals, workload.controls
    begins = max([arrival.at_s for arrival in arrivals] + [control.at_s for control in controls], default=0.0)
    waits = [PATIENCE_S if arrival.timeout_s is None else arrival.timeout_s for arrival in arrivals]
    waits += [control.undo_s + row_of(control.body).wait_s(control.body) for control in controls]
    return begins + sum(waits) + faults.late * faults.late_s + PATIENCE_S


def overtaking_limit(name: str) -> int | None:
    """Later requests of equal priority that the policy may admit first, None for any number: its own `max_overtaken`,
    or the usual limit where it states none."""
    policy = POLICIES[name](0)
    limit: int | None = getattr(policy, "max_overtaken", USUAL_LIMIT)
    return limit


def cluster(
    workload: Workload,
    source: ChoiceSource,
    *,
    faults: Faults = NO_FAULTS,
    properties: MakeProperties = record_properties,
    preempt: bool = False,
    model: Model = GHOST,
) -> Cluster:
    """An engine that serves `workload` with `model`, all of whose schedule is decided by `source`."""
    codec = make_codec if workload.encoded else None
    system = SimulatedSystem(source, seed=1, faults=faults, preempt=preempt, make_codec=codec)
    return Cluster(system, workload, properties(model), model)
