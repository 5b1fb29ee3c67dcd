"""The whole engine in a simulator: every actor is the real one, the model is the ghost, clients are part of the run.

    clients (inside the gateway's turn) ── the actors of `pawl.build.wiring` ── recorder ──► records in memory

After every step the new records are judged by every property; at rest the clients' outputs are compared with what the
prompts imply, the books of every actor must balance, and the run is replayed from its own records.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import msgspec

from pawl.actors.codec import make_codec
from pawl.actors.control import row_of
from pawl.actors.detokenizer import Detokenizer
from pawl.actors.grammar import GrammarCompiler
from pawl.actors.names import NAMES
from pawl.actors.recorder import Recorder
from pawl.actors.simulation.choice import ChoiceSource
from pawl.actors.simulation.exploration import Case
from pawl.actors.simulation.faults import FaultKind, Faults
from pawl.actors.simulation.system import SimulatedSystem
from pawl.build.ghost import GhostSource
from pawl.build.parts import Parts
from pawl.build.wiring import engine_actors, spawn_all, stop_order
from pawl.features.request import BAD_GRAMMAR
from pawl.gpu.ghost.runner import Ghost
from pawl.lifecycle.properties.base import Property, Violation
from pawl.lifecycle.properties.grammar import GrammarIsAFold
from pawl.lifecycle.properties.monitor import PROPERTIES, Monitor
from pawl.lifecycle.records import ENCODER, Record, Started
from pawl.lifecycle.states import ABORT_CAUSES, Cause
from pawl.loops.decision_log import OneDecisionLog
from pawl.loops.policy import POLICIES
from pawl.loops.requests import MAX_STRIKES
from pawl.memory.prefix.events import CacheEvent, Mirror
from pawl.memory.violation import MemoryViolation
from pawl.testing.clients import Client, FrontDesk
from pawl.testing.expectations import (
    PropertyFailed,
    check_refusal,
    check_usage,
    simulated_fold,
    simulated_grammars,
    vocabulary,
)
from pawl.testing.models import GHOST, Fallible, Model, storage_of
from pawl.testing.plugins import SCHEDULERS
from pawl.testing.properties import USUAL_LIMIT, BoundedOvertaking
from pawl.testing.reached import events_of
from pawl.testing.timely import TimelyScheduler, timely
from pawl.testing.workload import Workload

NO_FAULTS = Faults()
PATIENCE_S = 5.0
"""Virtual seconds after which a request that set no limit of its own is given up. Work takes no virtual time, so only
one that is never served gets there."""


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


MakeProperties: TypeAlias = Callable[[], Sequence[Property]]


def quick_properties() -> Sequence[Property]:
    """Every property that records decide, but the replay of the run."""
    return [*(make() for make in PROPERTIES), GrammarIsAFold(simulated_fold)]


def record_properties() -> Sequence[Property]:
    """Every property that records decide, the replay of the run included."""
    return [*quick_properties(), OneDecisionLog()]


class Cluster(Case):
    """One engine, its clients, and what is checked."""

    def __init__(
        self, system: SimulatedSystem, workload: Workload, properties: Sequence[Property], model: Model
    ) -> None:
        super().__init__(system)
        self.model = model
        self.workload = workload
        self.monitor = Monitor(properties)
        config = workload.shape.loop_config()
        started = Started(
            version="simulated",
            model=model.name,
            config={"loop": msgspec.to_builtins(config), "backend": model.name},
            num_pages=config.num_pages,
            page_size=config.page_size,
            num_slots=config.max_running,
            seed=0,
            time=0.0,
            wall=0.0,
        )
        grammars = simulated_grammars()
        self.runner = model.runner(config, grammars)
        self.trace = MemoryTrace()
        recorder: Any = self.trace
        parts = Parts(
            source=GhostSource(),
            vocabulary=vocabulary(),
            runner=Fallible(self.runner, system.strikes),
            loop_config=config,
            recorder=Recorder(recorder, started),
            started=started,
            storage=storage_of(config, workload.shape.host_pages, self.runner),
            grammars=grammars,
        )
        self.desk = FrontDesk(workload, config.max_running + config.max_queued, model.expectations)
        self.desk.report = self._report
        make_scheduler = timely(SCHEDULERS[workload.shape.scheduler])
        specs = engine_actors(parts, self.desk, PATIENCE_S, make_scheduler=make_scheduler)
        self._stop_order = stop_order(specs)
        actors: dict[str, Any] = {spec.name: spec.actor for spec in specs}
        self.scheduler: TimelyScheduler = actors[NAMES.scheduler]
        self.scheduler.report = self._report
        self.detokenizer: Detokenizer = actors[NAMES.detokenizer]
        self.grammar: GrammarCompiler = actors[NAMES.grammar]
        self.mirror = Mirror(config.page_size)
        """The prefix cache, as its events tell it."""
        self.scheduler.loop.feed.follow(self._follow_cache)
        limit = overtaking_limit(config.policy)
        if limit is not None:
            self.monitor.properties.append(BoundedOvertaking(limit))
        spawn_all(system, specs)
        system.start()
        self._ghost = self.runner if isinstance(self.runner, Ghost) else None
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
        if not self._closing and self.desk.at_rest and self.system.num_waiting() == 0:
            self._closing = True
            self._check_rest()
            self.system.begin_stop(self._stop_order)
        return None

    def _check_rest(self) -> None:
        """Nothing is live: every owner's books are empty. The scheduler looks through its own when it stops."""
        try:
            self.desk.check()
        except Exception as error:
            raise PropertyFailed("auxiliary_conservation", f"at rest: {error}") from error
        memory = self.scheduler.loop.memory
        if self.detokenizer.num_open:
            raise PropertyFailed("auxiliary_conservation", f"at rest: {self.detokenizer.num_open} texts are open")
        if self.grammar.num_open:
            raise PropertyFailed("auxiliary_conservation", f"at rest: {self.grammar.num_open} grammars are held")
        if self.mirror.content != memory.cache.content():
            raise PropertyFailed("observability_conservation", "the cache is not what its events tell")

    def at_rest(self) -> None:
        self.stepped()
        for client in self.desk.clients:
            if not client.num_ends and not client.left:
                raise PropertyFailed(
                    "bounded_progress", "the run has ended and the client was never answered", client.request
                )
            if client.num_ends > 1:
                raise PropertyFailed("legal_lifecycle", f"{client.num_ends} terminal replies", client.request)
            self._check_output(client)
        self._check_answers()
        self._check_letters()
        if self.desk.totals.violations:
            raise PropertyFailed("legal_lifecycle", str(dict(self.desk.totals.violations)))
        if not self.system.failures:
            self._raise(self.monitor.finish())
            for each in self.monitor.properties:
                if each.unjudged:
                    raise PropertyFailed(each.name, each.unjudged)
        if self.reached is not None:
            self.reached.update(events_of(self))

    def _check_letters(self) -> None:
        """Nothing was sent to nobody, the heartbeats told of no stall, and actors stopped so that none was left with
        messages: unless actors failed, or time was made to fly past the end of a stop."""
        faults = self.system.faults.faults
        if self.system.failures or faults.rush or faults.late:
            return
        if self.system.dead_letters.total:
            letter = self.system.dead_letters.recent()[0]
            lost = f"{type(letter.message).__name__} from {letter.sender} to {letter.to}: {letter.reason}"
            raise PropertyFailed("auxiliary_conservation", f"a message that nobody took: {lost}")
        if self.desk.pace.seconds:
            raise PropertyFailed("bounded_progress", f"the watchdog saw a stall of {self.desk.pace.seconds:g} s")

    def _check_answers(self) -> None:
        """Each control message was answered once, and as its row says it must be. Where time was made to fly, the
        gateway may have answered in place of the scheduler."""
        rushed = self.system.faults.faults.rush > 0
        for control, answers in zip(self.workload.controls, self.desk.answers, strict=True):
            row = row_of(control.body)
            if len(answers) != 1:
                raise PropertyFailed(row.proves, f"{row.name} was answered {len(answers)} times")
            wrong = None if rushed else row.check(control.body, answers[0])
            if wrong is not None:
                raise PropertyFailed(row.proves, f"{row.name}: {wrong}")

    def _check_output(self, client: Client) -> None:
        """The client saw what its request implies: all of it, or a beginning where somebody ended it early."""
        arrival, request = client.arrival, client.request
        expectations = self.model.expectations
        expectations.check_beginning(arrival, client.tokens, client.text, request)
        expectations.check_scores(arrival, client.scores, client.prompt_scores, request)
        if client.refusal is not None:
            self._check_cause(client, client.refusal.cause)
        elif client.done is not None and not client.left:
            cause = client.done.cause
            if cause in ABORT_CAUSES:
                self._check_cause(client, cause)
            else:
                expectations.check_whole(arrival, client.tokens, client.text, cause, request)
            check_usage(arrival, client.tokens, client.done.usage, request)

    def _check_cause(self, client: Client, cause: Cause) -> None:
        """An abort must have had a reason in the workload or in the faults."""
        if cause is Cause.GRAMMAR and client.arrival.grammar != BAD_GRAMMAR:
            raise PropertyFailed("grammar_is_a_fold", "its grammar refused what was drawn for it", client.request)
        if cause is Cause.TIMEOUT and client.arrival.timeout_s is None and not self._time_flew:
            raise PropertyFailed("bounded_progress", f"not served within {PATIENCE_S:g} s at rest", client.request)
        lost = cause is Cause.WORKER_LOST and len(self.system.faults.struck) >= MAX_STRIKES
        left = cause is Cause.DISCONNECT and client.arrival.leaves_after is not None
        ended = any(cause in row_of(control.body).ends for control in self.workload.controls)
        if cause is not Cause.TIMEOUT and not lost and not left and not ended:
            check_refusal(client.arrival, self.workload.shape, len(self.desk.clients), cause, client.request)

    @property
    def _time_flew(self) -> bool:
        """Whether a fault made time pass while there was work: then requests may be given up that were being served."""
        budget = self.system.faults
        return any(budget.left[kind] < budget.faults.budget(kind) for kind in (FaultKind.RUSH, FaultKind.LATE))

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


def horizon(workload: Workload, faults: Faults) -> float:
    """Virtual seconds after which no client can have anything to wait for any more: were all requests sent one after
    the other, each would have been answered or given up."""
    arrivals, controls = workload.arrivals, workload.controls
    begins = max([arrival.at_s for arrival in arrivals] + [control.at_s for control in controls], default=0.0)
    waits = [PATIENCE_S if arrival.timeout_s is None else arrival.timeout_s for arrival in arrivals]
    waits += [row_of(control.body).wait_s(control.body) for control in controls]
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
    return Cluster(system, workload, properties(), model)
