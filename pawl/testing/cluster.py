"""The whole engine in a simulator: every actor is the real one, the model is the ghost, clients are part of the run.

    clients (inside the gateway's turn) ── gateway ── tokenizer ── scheduler ── worker with a ghost
                                              ▲                     │    │
                                              └──── detokenizer ◄───┘    └──► recorder ──► records in memory

After every step the new records are judged by every property; at rest the clients' outputs are compared with what the
prompts imply, the books of every actor must balance, and the run is replayed from its own records.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeAlias

import msgspec

from actors.detokenizer import Detokenizer
from actors.gateway import FromPeers, Gateway
from actors.messages.generate import Output, Refused, Submit, TextOptions
from actors.recorder import Recorder
from actors.runtime.actor import Overflow
from actors.runtime.choice import ChoiceSource
from actors.runtime.exploration import Case
from actors.runtime.faults import Faults
from actors.runtime.simulated import ActorFailure, SimulatedSystem
from actors.scheduler import Scheduler
from actors.sink import Inbox
from actors.text.ghost import ghost_vocabulary
from actors.text.vocabulary import Vocabulary
from actors.tokenizer import Limits, Tokenizer
from actors.worker import Worker
from gpu.ghost import Ghost, PlannedFailure
from gpu.ghost_oracle import expected
from lifecycle.properties.base import Property, Violation
from lifecycle.properties.monitor import PROPERTIES, Monitor
from lifecycle.records import Record, Started
from lifecycle.states import ABORT_CAUSES, Cause
from lifecycle.step import StepBatch, StepResult
from loops.judging import OneDecisionLog
from pawl.testing.workload import Arrival, Workload, sampling_of

STOP_ORDER = ("tokenizer", "scheduler", "worker", "detokenizer", "gateway", "recorder")
NO_FAULTS = Faults()
PATIENCE_S = 5.0
"""Virtual seconds after which a request that set no limit of its own is given up. Work takes no virtual time, so only
one that is never served gets there."""


class PropertyFailed(Exception):
    """A property does not hold in this run."""

    def __init__(self, name: str, explanation: str, request: int | None = None) -> None:
        concerned = "" if request is None else f", request {request}"
        super().__init__(f"{name}{concerned}: {explanation}")
        self.property = name
        self.request = request


# ---- clients ----


class Arrive(msgspec.Struct, frozen=True, tag=True):
    """It is time for this request."""

    index: int


class Leave(msgspec.Struct, frozen=True, tag=True):
    """This request's client has hung up."""

    index: int


class Client(Inbox):
    """One client: keeps all it was told, and hangs up when it is supposed to."""

    def __init__(self, desk: FrontDesk, index: int, arrival: Arrival) -> None:
        super().__init__()
        self.arrival = arrival
        self.request: int | None = None
        self.tokens: list[int] = []
        self.text = ""
        self.num_ends = 0
        self.left = False
        self._desk = desk
        self._index = index

    def push(self, output: Output) -> None:
        if self.left or self.num_ends:
            self._desk.report("silence_after_abort", "an output after the end", self.request)
        super().push(output)
        self.tokens += output.tokens
        self.text += output.text
        self.num_ends += output.done is not None
        self.leave_if_due()

    def refused(self, refused: Refused) -> None:
        super().refused(refused)
        self.num_ends += 1

    def leave_if_due(self) -> None:
        """Hang up, if it is the moment: the gateway learns of it by a message, as from a connection."""
        leaves_after = self.arrival.leaves_after
        if leaves_after is not None and len(self.tokens) >= leaves_after and not self.num_ends and not self.left:
            self._desk.context.send(self._desk.context.name, Leave(self._index))


class FrontDesk(Gateway):
    """The gateway, and the clients at its door."""

    accepts: Any = FromPeers | Arrive | Leave

    def __init__(self, workload: Workload, limit: int) -> None:
        super().__init__(limit)
        self.report: Callable[[str, str, int | None], None] = lambda name, text, request: None
        self.clients = [Client(self, index, arrival) for index, arrival in enumerate(workload.arrivals)]

    def started(self) -> None:
        for index, client in enumerate(self.clients):
            if client.arrival.at_s > 0:
                self.context.after(client.arrival.at_s, Arrive(index))
            else:
                self.context.send(self.context.name, Arrive(index))

    def receive(self, message: Any) -> None:
        match message:
            case Arrive(index):
                client = self.clients[index]
                (client.request,) = self.submit([_draft(client.arrival)], [client])
                client.leave_if_due()
            case Leave(index):
                client = self.clients[index]
                if client.request is not None and not client.num_ends:
                    client.left = True
                    self.abort([client.request], Cause.DISCONNECT)
            case _:
                super().receive(message)


def _draft(arrival: Arrival) -> Submit:
    return Submit(
        request=0,
        rid="",
        token_ids=arrival.prompt,
        sampling=sampling_of(arrival),
        text_options=TextOptions(stop=stop_strings(arrival)),
        priority=arrival.priority,
        timeout_s=arrival.timeout_s,
        cache_salt=arrival.salt,
    )


def stop_strings(arrival: Arrival) -> tuple[str, ...]:
    """The text of the output token that is to stop it; none when that token has no text of its own."""
    if arrival.stop_after is None:
        return ()
    token = expected(arrival.prompt, arrival.stop_after)[-1]
    text = vocabulary().decode([token])
    return (text,) if text and "\N{REPLACEMENT CHARACTER}" not in text else ()


_VOCABULARY: list[Vocabulary] = []


def vocabulary() -> Vocabulary:
    """The ghost's, made once."""
    if not _VOCABULARY:
        _VOCABULARY.append(ghost_vocabulary())
    return _VOCABULARY[0]


# ---- the rest of the engine ----


class MemoryTrace:
    """Stands where a TraceWriter does: keeps the records."""

    pending = 0

    def __init__(self) -> None:
        self.records: list[Record] = []

    def append(self, record: Record) -> None:
        self.records.append(record)

    def flush(self) -> None: ...

    def close(self) -> None: ...


class FallibleGhost(Ghost):
    """A ghost whose steps fail where the schedule says so."""

    system: SimulatedSystem

    def launch(self, batch: StepBatch) -> StepResult:
        if self.system.strikes("step"):
            raise PlannedFailure(batch.step)
        return super().launch(batch)


MakeProperties: TypeAlias = Callable[[], Sequence[Property]]


def quick_properties() -> Sequence[Property]:
    """Every property that records decide, but the replay of the run."""
    return [make() for make in PROPERTIES]


def record_properties() -> Sequence[Property]:
    """Every property that records decide, the replay of the run included."""
    return [*quick_properties(), OneDecisionLog()]


class Cluster(Case):
    """One engine, its clients, and what is checked."""

    def __init__(self, system: SimulatedSystem, workload: Workload, properties: Sequence[Property]) -> None:
        super().__init__(system)
        self.workload = workload
        self.monitor = Monitor(properties)
        config = workload.shape.loop_config()
        started = Started(
            version="simulated",
            model="ghost",
            config={"loop": msgspec.to_builtins(config), "backend": "ghost"},
            num_pages=config.num_pages,
            page_size=config.page_size,
            num_slots=config.max_running,
            seed=0,
            time=0.0,
            wall=0.0,
        )
        self.desk = FrontDesk(workload, config.max_running + config.max_queued)
        self.desk.report = self._report
        self.scheduler = Scheduler(config, PATIENCE_S, started)
        self.ghost = FallibleGhost.for_shape(config)
        assert isinstance(self.ghost, FallibleGhost)
        self.ghost.system = system
        self.detokenizer = Detokenizer(vocabulary())
        self.trace = MemoryTrace()
        recorder: Any = self.trace
        # As `pawl.engine` does it; the watchdog is left out: its heartbeat never rests.
        system.spawn(self.desk, "gateway", overflow=Overflow.HOLD)
        system.spawn(Tokenizer(vocabulary(), Limits(config.max_context)), "tokenizer")
        system.spawn(self.scheduler, "scheduler", capacity=1024)
        system.spawn(Worker(self.ghost), "worker", overflow=Overflow.HOLD)
        system.spawn(self.detokenizer, "detokenizer", overflow=Overflow.HOLD, capacity=4096)
        system.spawn(Recorder(recorder), "recorder", capacity=65_536)
        for name in STOP_ORDER:
            if name != "gateway":
                system.watch("gateway", name)
        system.start()
        self._num_judged = 0
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
        if self.scheduler.violations:
            law, count = next(iter(self.scheduler.violations.items()))
            raise PropertyFailed("laws_of_memory", f"{law} ({count})")
        if self.ghost.faults:
            raise PropertyFailed("read_after_commit", str(self.ghost.faults[0]))

    def done(self) -> bool | None:
        answered = all(client.num_ends or client.left for client in self.desk.clients)
        if answered and not self._closing and self.desk.num_live == 0 and self.system.num_waiting() == 0:
            self._closing = True
            self._check_rest()
            self.system.begin_stop(STOP_ORDER)
        return None

    def _check_rest(self) -> None:
        """Nothing is live: every owner's books are empty."""
        try:
            self.scheduler.loop.check()
            self.desk.invariants()
        except Exception as error:
            raise PropertyFailed("auxiliary_conservation", f"at rest: {error}") from error
        memory = self.scheduler.loop.memory
        if memory.pages.owned or memory.pages.quarantined or memory.slots.in_use.any() or memory.escrow.total:
            raise PropertyFailed("conservation", f"at rest: {memory.pages.counters()}")
        if self.detokenizer.num_open:
            raise PropertyFailed("auxiliary_conservation", f"at rest: {self.detokenizer.num_open} texts are open")

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
        if self.desk.totals.violations:
            raise PropertyFailed("legal_lifecycle", str(dict(self.desk.totals.violations)))
        if not self.system.failures:
            self._raise(self.monitor.finish())

    def _check_output(self, client: Client) -> None:
        """The client saw what its prompt implies: all of it, or a beginning where somebody ended it early."""
        arrival = client.arrival
        cause = client.done.cause if client.done is not None else None
        wanted = arrival.max_new_tokens
        if arrival.seed is None:
            whole = expected(arrival.prompt, wanted)
            if client.tokens != whole[: len(client.tokens)]:
                raise PropertyFailed(
                    "schedule_equivalence", f"{client.tokens} is not how {whole} begins", client.request
                )
        if client.left or client.refusal is not None:
            return
        if cause in ABORT_CAUSES:
            self._check_cause(client, cause)
            return
        if cause is Cause.LENGTH and len(client.tokens) != wanted:
            raise PropertyFailed("stream_equals_result", f"{len(client.tokens)} of {wanted} tokens", client.request)
        self._check_stop(client, cause)

    def _check_cause(self, client: Client, cause: Cause) -> None:
        """An abort must have had a reason in the workload or in the faults."""
        if cause is Cause.TIMEOUT and client.arrival.timeout_s is None:
            raise PropertyFailed("bounded_progress", f"not served within {PATIENCE_S:g} s at rest", client.request)
        lost = cause is Cause.WORKER_LOST and self.scheduler.loop.counters.steps_lost > 0
        left = cause is Cause.DISCONNECT and client.arrival.leaves_after is not None
        if cause is not Cause.TIMEOUT and not lost and not left:
            raise PropertyFailed("fault_isolation", f"it was aborted for no reason: {cause}", client.request)

    def _check_stop(self, client: Client, cause: Cause | None) -> None:
        stops = stop_strings(client.arrival)
        if any(stop in client.text for stop in stops):
            raise PropertyFailed("stop_semantics", f"{client.text!r} contains {stops}", client.request)
        if cause is Cause.STOP_STRING and not stops:
            raise PropertyFailed("stop_semantics", "it was stopped by a string that it does not have", client.request)

    # ---- for strategies ----

    def tolerates(self, failure: ActorFailure) -> bool:
        return super().tolerates(failure)

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


def cluster(
    workload: Workload,
    source: ChoiceSource,
    *,
    faults: Faults = NO_FAULTS,
    properties: MakeProperties = record_properties,
    preempt: bool = False,
) -> Cluster:
    """An engine that serves `workload`, all of whose schedule is decided by `source`."""
    system = SimulatedSystem(source, seed=1, faults=faults, preempt=preempt)
    return Cluster(system, workload, properties())
