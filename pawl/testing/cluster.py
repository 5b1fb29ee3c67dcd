"""The whole engine in a simulator: every actor is the real one, the model is the ghost, clients are part of the run.

    clients (inside the gateway's turn) ── the actors of `pawl.build.wiring` ── recorder ──► records in memory

There may be several replicas, each with records of its own. After every step the new records are judged by every
property; at rest the clients' outputs are compared with what the prompts imply, the books of every actor must balance,
and the run of each replica is replayed from its own records.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable
from functools import lru_cache
from typing import Any, ClassVar

from pawl.actors.codec import make_codec
from pawl.actors.control import row_of
from pawl.actors.detokenizer import OutputsRefused
from pawl.actors.messages.links import PeerLost
from pawl.actors.names import FRONT, NAMES, PREFILL, UNIFIED, Names, names_of
from pawl.actors.runtime.actor import Lane, Overflow
from pawl.actors.simulation.choice import ChoiceSource
from pawl.actors.simulation.exploration import Case
from pawl.actors.simulation.faults import Faults, InjectedCrash
from pawl.actors.simulation.network import no_wires
from pawl.actors.simulation.processes import LOST, Processes
from pawl.actors.simulation.system import ActorFailure, SimulatedSystem
from pawl.build.wiring import (
    ActorSpec,
    crosses,
    engine_actors,
    in_order,
    process_of,
    replica_actors,
    spawn_all,
    stop_order,
)
from pawl.gpu.parallel.ranks import HostGone
from pawl.lifecycle.hand_overs import matched, side_of
from pawl.lifecycle.records import ENCODER
from pawl.lifecycle.resumed import gone_on, replica_of
from pawl.testing.asked import check_answered
from pawl.testing.at_rest import EndChecks
from pawl.testing.clients import FrontDesk
from pawl.testing.expectations import PropertyFailed
from pawl.testing.links import SimulatedDialer
from pawl.testing.models import GHOST, Model
from pawl.testing.plugins import SCHEDULERS
from pawl.testing.ranks import RankHost
from pawl.testing.reached import events_of
from pawl.testing.replica import MakeProperties, SimulatedReplica, record_properties
from pawl.testing.routing import WatchedRouter
from pawl.testing.starter import SimulatedStarter
from pawl.testing.timely import timely
from pawl.testing.workload import Workload

NO_FAULTS = Faults()
CRASHES = (InjectedCrash, OutputsRefused, HostGone)
PATIENCE_S = 120.0
"""Virtual seconds after which a request that set no limit of its own is given up. Work takes a fraction of that at the
most, so only one that is never served gets there."""


class Cluster(Case):
    """One engine, its clients, and what is checked."""

    make_checks: ClassVar[type[EndChecks]] = EndChecks
    make_desk: ClassVar[type[FrontDesk]] = FrontDesk
    system: SimulatedSystem

    def __init__(self, system: SimulatedSystem, workload: Workload, properties: MakeProperties, model: Model) -> None:
        super().__init__(system)
        self.model = model
        self.workload = workload
        self.checks = self.make_checks(self)
        self._properties = properties
        shape = workload.shape
        several = shape.routed
        self._rank_host = RankHost()
        self.replicas = [
            self._made(names_of(number, role) if several else NAMES) for number, role in enumerate(shape.roles)
        ]
        """All that were ever started, in the order of their numbers."""
        config = shape.loop_config()
        limit = max(shape.replicas, shape.max_replicas) * (config.max_running + config.max_queued)
        self.desk = self.make_desk(workload, limit, model.expectations, FRONT if several else NAMES)
        self.desk.report = self._report
        self.router: WatchedRouter | None = None
        self.starter: SimulatedStarter | None = None
        if several:
            names = [replica.names for replica in self.replicas]
            self.starter = SimulatedStarter(self)
            self.router = WatchedRouter(shape, names, self.starter, self._report, linked=workload.processes)
            self.router.loop_of = lambda number: self.replicas[number].scheduler.loop
            self.router.is_lost = self._is_lost
        self._make_scheduler = timely(SCHEDULERS[shape.scheduler], shape.scheduler)
        specs = engine_actors(
            [replica.parts for replica in self.replicas],
            self.desk,
            PATIENCE_S,
            router=self.router,
            make_scheduler=self._make_scheduler,
        )
        self._specs = self._small(specs)
        self.actors: dict[str, Any] = {spec.name: spec.actor for spec in specs}
        for replica in self.replicas:
            own = {spec.name: spec.actor for spec in specs if spec.name in replica.names.own}
            replica.adopt(own, self._report)
        spawn_all(system, self._specs)
        system.start()
        self.reached: Counter[str] | None = None
        """Where the events of the run are counted once it has held."""
        self._horizon_s = horizon(workload, system.faults.faults)
        self.closing = False
        if workload.processes:
            processes = system.processes = Processes(system, process_of, process_of(NAMES.gateway))
            processes.mortal, processes.on_lost = self._mortal, self._process_lost

    def _small(self, specs: tuple[ActorSpec, ...]) -> tuple[ActorSpec, ...]:
        """With the mailboxes of the workload. What holds its senders back has room for the ends of all requests, as in
        `engine_actors`."""
        mailbox = self.workload.shape.mailbox
        if mailbox is None:
            return specs
        ends = len(self.workload.arrivals) + 1
        small = {NAMES.tokenizer: mailbox, NAMES.detokenizer: ends}
        small |= {replica.names.scheduler: mailbox for replica in self.replicas}
        return tuple(spec._replace(capacity=small.get(spec.name, spec.capacity)) for spec in specs)

    def _made(self, names: Names) -> SimulatedReplica:
        apart = self.workload.processes and names.role != UNIFIED
        dialer = SimulatedDialer(self.system, names) if apart else None
        if self._rank_host.is_gone:  # another one has come in its place
            self._rank_host = RankHost()
        shape = self.workload.shape
        host = self._rank_host if shape.rank_hosts > 1 else None
        return SimulatedReplica(self.system, shape, names, self._properties, self.model, dialer, host)

    def start_replica(self, role: str) -> SimulatedReplica:
        """One more, in a run that goes on."""
        replica = self._made(names_of(len(self.replicas), role))
        self.replicas.append(replica)
        made = replica_actors(replica.parts, PATIENCE_S, names=replica.names, make_scheduler=self._make_scheduler)
        specs = self._small(made)
        own = {spec.name: spec.actor for spec in specs}
        replica.adopt(own, self._report)
        self.actors |= own
        self._specs = in_order((*self._specs, *specs), *(each.names for each in self.replicas))
        spawn_all(self.system, specs)
        return replica

    def _is_lost(self, number: int) -> bool:
        replica = self.replicas[number]
        return self.closing or replica.lost or not replica.names.own.isdisjoint(self.failed)

    def _mortal(self) -> list[str]:
        """Processes that may be lost now: of replicas that serve, or begin to, while the engine does not stop."""
        if self.closing or self.desk.wants_stop:
            return []
        gone = set() if self.starter is None else self.starter.gone
        there = [each for each in self.replicas if not each.lost and each.names not in gone]
        if self.system.faults.faults.in_work and self.router is not None:
            begun = {routed.replica for routed in self.router.routed.values() if routed.tokens}
            there = [each for each in there if each.names.replica in begun]
        return [process_of(each.names.scheduler) for each in there]

    def _process_lost(self, process: str) -> None:
        """The front has given it up. Others that have a link with it see that end."""
        for replica in self.replicas if self.router is not None else ():
            names = replica.names
            if process_of(names.scheduler) == process:
                replica.lost = True
                for other in self.replicas:
                    if names.linker in self.actors and other.names.linker in self.actors and other is not replica:
                        self.system.send(other.names.linker, PeerLost(names.linker, LOST), Lane.CONTROL)

    @property
    def serving(self) -> list[SimulatedReplica]:
        """Those that take requests of clients, or did."""
        return [replica for replica in self.replicas if replica.names.role != PREFILL]

    @property
    def scheduler(self) -> Any:
        """Of the first replica."""
        return self.replicas[0].scheduler

    @property
    def trace(self) -> Any:
        """Of the first replica."""
        return self.replicas[0].trace

    @property
    def monitor(self) -> Any:
        """Of the first replica."""
        return self.replicas[0].monitor

    # ---- checks ----

    def _report(self, name: str, explanation: str, request: int | None) -> None:
        self.system.report(PropertyFailed(name, explanation, request))

    def stepped(self) -> None:
        if self.starter is not None:
            self.starter.stepped()
        for replica in self.replicas:
            replica.stepped()
        if self.workload.shape.prefillers and not (self.closing or self._waits or self.crashed):
            self.checks.check_pairs()

    def done(self) -> bool | None:
        if self.system.now_s > self._horizon_s and not self.closing and not self.system.network.ready:
            # Heartbeats go on for ever: that nothing else happens any more has to be seen from the clock.
            self.system.check_not_stuck()
            return True
        if not self.closing and (self.desk.wants_stop or NAMES.gateway in self.crashed):
            self._stop()
        if not self.closing and self.desk.at_rest and not self._waits and not self._at_work:
            self.checks.check_rest()
            self._stop()
        return None

    def too_long(self) -> None:
        check_answered(self)

    def _stop(self) -> None:
        self.closing = True
        self.system.begin_stop(stop_order(self._specs))

    @property
    def _waits(self) -> bool:
        """Whether a message was sent and not taken."""
        system = self.system
        return any(driver.cell.mailbox.waits for driver in system.drivers) or system.network.num_on_the_way() > 0

    @property
    def _at_work(self) -> bool:
        """A step that nobody waits for any more is on the device, or what an actor has to say is to come: no message
        tells."""
        unsettled = any(driver.cell.unsettled for driver in self.system.drivers)
        # Of a replica that has left nobody waits for the rest of a request that has ended.
        there = [replica for replica in self.replicas if not (replica.lost or replica.left)]
        in_flight = any(replica.scheduler.loop.in_flight for replica in there)
        return unsettled or (in_flight and not self.crashed)

    def at_rest(self) -> None:
        self.stepped()
        self.checks.check_end()
        if self.reached is not None:
            self.reached.update(events_of(self))

    def judge_whole(self) -> None:
        """What can be said of the records once all are there, of each replica that was not lost."""
        for replica in self.replicas:
            if not replica.lost:
                replica.judge_whole()
        sides = [side for replica in self.replicas if (side := side_of(replica.trace.records)) is not None]
        again = gone_on(replica_of(replica.trace.records) for replica in self.replicas)
        for fault in (*matched(sides).faults, *again.faults):
            raise PropertyFailed("observability_conservation", fault)

    @property
    def failed(self) -> set[str]:
        """Actors that were made to fail, or could not go on without one of those, and are gone."""
        return {failure.name for failure in self.system.failures if isinstance(failure.error, CRASHES)}

    @property
    def crashed(self) -> set[str]:
        """Those whose loss clients may notice: not where another replica takes over."""
        if not self.system.failures:
            return set()
        if self.router is not None and not self.router.fleet.lost:
            lost = {name for replica in self.replicas if replica.lost for name in replica.names.own}
            return self.failed - lost
        return self.failed

    @property
    def num_held_back(self) -> int:
        """Actors whose full mailboxes have held their senders back."""
        mailboxes = [driver.cell.mailbox for driver in self.system.drivers]
        return sum(box.overflow is Overflow.HOLD and box.most_data > box.capacity for box in mailboxes)

    def tolerates(self, failure: ActorFailure) -> bool:
        # Outputs cannot be dropped: without a gateway their sender fails.
        return isinstance(failure.error, InjectedCrash | HostGone) or (
            isinstance(failure.error, OutputsRefused) and NAMES.gateway in self.crashed
        )

    # ---- for strategies ----

    def outcome(self) -> bytes:
        """A digest of all records: what was decided, when, about which memory."""
        found = hashlib.blake2b(digest_size=16)
        for replica in self.replicas:
            for record in replica.trace.records:
                found.update(ENCODER.encode(record))
        return found.digest()

    def state(self) -> Hashable:
        """Requests by state, memory by class, and what waits where."""
        return (*(self._state_of(replica) for replica in self.replicas), super().state())

    def _state_of(self, replica: SimulatedReplica) -> Hashable:
        loop = replica.scheduler.loop
        pages = loop.memory.pages
        return (
            tuple(loop.table.state[loop.table.live_rows()].tolist()),
            (pages.free, pages.owned, pages.cached, pages.deferred),
            len(loop.in_flight),
        )


def horizon(workload: Workload, faults: Faults) -> float:
    """Virtual seconds after which no client can have anything to wait for any more: were all requests sent one after
    the other, each would have been answered or given up."""
    arrivals, controls = workload.arrivals, workload.controls
    begins = max([arrival.at_s for arrival in arrivals] + [control.at_s for control in controls], default=0.0)
    waits = [PATIENCE_S if arrival.timeout_s is None else arrival.timeout_s for arrival in arrivals]
    waits += [control.undo_s + row_of(control.body).wait_s(control.body) for control in controls]
    return begins + sum(waits) + faults.late * faults.late_s + PATIENCE_S


def cluster(
    workload: Workload,
    source: ChoiceSource,
    *,
    faults: Faults = NO_FAULTS,
    properties: MakeProperties = record_properties,
    preempt: bool = False,
    model: Model = GHOST,
    kind: type[Cluster] = Cluster,
) -> Cluster:
    """An engine that serves `workload` with `model`, all of whose schedule is decided by `source`."""
    return kind(system_of(workload, source, faults, preempt=preempt), workload, properties, model)


_codec_of = lru_cache(maxsize=64)(make_codec)
"""One for each union of messages: every run is in one thread, and reads what it writes at once."""


def system_of(
    workload: Workload, source: ChoiceSource, faults: Faults = NO_FAULTS, *, preempt: bool = False
) -> SimulatedSystem:
    """Where the actors of an engine for `workload` live."""
    codec = _codec_of if workload.encoded or workload.processes else None
    is_wire = crosses if workload.processes else no_wires
    return SimulatedSystem(source, seed=1, faults=faults, is_wire=is_wire, preempt=preempt, make_codec=codec)
