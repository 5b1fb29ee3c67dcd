"""The process of a replica, as the front sees it: started, asked what it has, joined, watched, ended."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog

from pawl import __version__
from pawl.actors.names import Names, names_of
from pawl.actors.runtime.processes.link import Link
from pawl.actors.runtime.processes.system import ProcessSystem
from pawl.actors.text.ghost import ghost_vocabulary
from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.hosts.host import Host, Hosts, ReplicaFailed
from pawl.build.hosts.started import StartedOutpost
from pawl.build.ready import Progress, Ready, Refused, Setup
from pawl.build.wiring import process_of
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.weights.report import Report, unheard

log = structlog.get_logger("pawl.build.replica_process")

MEET_S = 60.0
"""What a replica that is ready may take until it is met."""
END_S = 5.0
"""What its process may take to end, after its actors."""


class Origin(NamedTuple):
    """Where the model of a replica comes from (a `Source`)."""

    name: str
    path: Path


class ReplicaProcess:
    """What an engine needs of a replica that is loaded, and serves, in another process (compare `Parts`)."""

    def __init__(
        self,
        config: ServerConfig,
        names: Names,
        hosts: Hosts,
        host: Host,
        place: int,
        beside: Sequence[Host] = (),
    ) -> None:
        """Start it on `host`, at its place among all replicas, and its outposts `beside`; `wait_until_ready` is next.
        Raises HostLost, ReplicaFailed, and ConfigError."""
        self.names = names
        self.name = process_of(names.scheduler)
        self.hosts = hosts
        self.met = threading.Event()
        """Set when the system of the front knows its actors."""
        self._config = config
        self._link: Link | None = None
        self._ended = threading.Event()
        self._killed = False
        self._elsewhere = bool(host.name)
        self.home = host.home
        self.where = f"{self.name} on {host.name}" if self._elsewhere else self.name
        """The process, and its host, as people know them."""
        self._wire = host.bind(self.name)
        settings = msgspec.to_builtins(config)
        setup = Setup(settings, names, self.name, self._wire.address, sys.getswitchinterval(), place)
        self._outposts: list[StartedOutpost] = []
        try:
            for number, other in enumerate(beside, 1):
                self._outposts.append(StartedOutpost(setup, other, number))
            addresses = tuple(outpost.wait_until_ready() for outpost in self._outposts)
            self._running = host.start(msgspec.structs.replace(setup, outposts=addresses))
        except BaseException:
            self._end_outposts()
            self._wire.shut()
            raise
        for outpost in self._outposts:
            outpost.watch(self._lost_outpost)

    def wait_until_ready(self, report: Report = unheard) -> None:
        """`report` hears how far it is. Raises ReplicaFailed, and ConfigError for settings that cannot be; then nothing
        is left of it."""
        try:
            self.ready = self._heard_ready(report)
            check_alike({"front": {"version": __version__}, self.where: self.ready.facts()})
            self.source = Origin(self.ready.name, Path(self.ready.path))
        except BaseException:
            self.kill()
            raise
        self.loop_config, self.abilities = self.ready.loop_config, self.ready.abilities
        self.summary, self.traced = self.ready.summary | {"pid": self.ready.pid}, self.ready.traced
        threading.Thread(target=self._watch, name=f"watch {self.name}", daemon=True).start()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Of its model, read by the front."""
        if self._config.model == "ghost":
            return ghost_vocabulary()
        if self._elsewhere and not self.source.path.exists():
            raise ReplicaFailed(
                f"{self.source.path}, of {self.where}, is not there on the head, which reads its vocabulary"
            )
        return Vocabulary.load(self.source.path, self.ready.num_embeddings)

    def _heard_ready(self, report: Report) -> Ready:
        while (said := self._running.heard()) is not None:
            match said:
                case Progress(share):
                    report(share)
                case Ready() as ready:
                    return ready
                case Refused(message, usage):
                    told = f"{self.where}: {message}" if self._elsewhere else message
                    raise ConfigError(told, "") if usage else ReplicaFailed(told)
        how = self._running.wait()
        for outpost in self._outposts:
            outpost.check()
        raise ReplicaFailed(f"{self.where} has ended before it was ready: {how}")

    def _watch(self) -> None:
        how = self._running.wait()
        self._ended.set()
        self.met.set()
        if self._link is not None:
            self._link.ends(f"the process of {self.where} has ended: {how}")

    def _lost_outpost(self, why: str) -> None:
        """Without it the replica can compute nothing: it is given up at once."""
        if not self._killed:
            log.error("a replica is ended, as ranks of it are gone", process=self.where, why=why)
            self._running.kill()

    def _end_outposts(self) -> None:
        for outpost in self._outposts:
            outpost.kill()

    # ---- for the engine ----

    @property
    def pid(self) -> int:
        """Of its process, on its host."""
        return self.ready.pid

    def join(self, system: ProcessSystem) -> None:
        """Let the actors of both processes find each other; `meet` is next."""
        self._link = system.connect(self.name, self._wire)

    def meet(self, system: ProcessSystem) -> None:
        """Wait until they have. Raises ReplicaFailed; then nothing is left of it."""
        link = self._link
        assert link is not None
        met = self.met.wait(MEET_S)
        if self._ended.is_set() or not met:
            system.lost(link, "it cannot be met")
            self.kill()
            raise ReplicaFailed(f"{self.where} was ready and cannot be met")

    def close(self) -> None:
        """Its actors have ended: the process does. May be called twice."""
        if self._link is not None and not self._ended.wait(END_S):
            log.error("the process of a replica does not end", process=self.where, pid=self.ready.pid)
        self.kill()

    def kill(self) -> None:
        """Be gone at once, whatever it is at."""
        self._killed = True
        self._running.kill()
        self._end_outposts()
        if self._link is None:
            self._wire.shut()


def started(
    shares: Mapping[int, ServerConfig], roles: Sequence[str], hosts: Hosts, report: Report = unheard
) -> list[ReplicaProcess]:
    """A replica for each share, by its place, all of which load at once, each as soon as its host is there; `report`
    hears how far they are. Raises what the first that fails raises (see `wait_until_ready`); then nothing is left of
    them."""
    made: dict[int, ReplicaProcess] = {}
    failed = threading.Event()
    loaded, one_by_one = [0.0] * len(shares), threading.Lock()

    def hear(number: int, share: float) -> None:
        with one_by_one:
            loaded[number] = share
            report(sum(loaded) / len(loaded))

    def start(number: int, place: int) -> None:
        names = names_of(number, roles[number])
        host, beside = hosts.of(place, failed), hosts.beside(place, failed)
        made[number] = replica = ReplicaProcess(shares[place], names, hosts, host, place, beside)
        if failed.is_set():
            replica.kill()
        replica.wait_until_ready(partial(hear, number))

    with ThreadPoolExecutor(len(shares)) as starting:
        try:
            for over in as_completed([starting.submit(start, *each) for each in enumerate(shares)]):
                over.result()
            _ = made[0].vocabulary  # read now, where it can still be refused
        except BaseException:
            failed.set()
            for replica in [*made.values()]:
                replica.kill()
            raise
    return [made[number] for number in range(len(shares))]


def check_alike(facts: dict[str, dict[str, Any]]) -> None:
    """What processes have of the same must be equal; raises ReplicaFailed with all values."""
    (first, mine), *others = facts.items()
    for name, theirs in others:
        for fact in mine.keys() & theirs.keys():
            if mine[fact] != theirs[fact]:
                raise ReplicaFailed(f"{fact} differs: {mine[fact]} in the {first}, {theirs[fact]} in the {name}")
