"""Replicas in processes of their own, behind the router of the front."""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from pawl import __version__
from pawl.actors.codec import make_codec
from pawl.actors.gateway import Gateway
from pawl.actors.names import Names
from pawl.actors.runtime.processes.system import Process, ProcessSystem
from pawl.build.hosts.host import HostLost
from pawl.build.ready import FRONT
from pawl.build.replica_process import ReplicaProcess, check_alike
from pawl.build.replicas import OnEnd, Replicas, router_of
from pawl.build.wiring import ActorSpec, all_names, routed_front, watch_replica
from pawl.config import ServerConfig

log = structlog.get_logger("pawl.build.replicas")


class ProcessReplicas(Replicas[ReplicaProcess]):
    """Replicas in processes of their own. One that is lost is ended, and another process started in its place."""

    def __init__(self, config: ServerConfig, replicas: Sequence[ReplicaProcess], on_end: OnEnd) -> None:
        """Raises ReplicaFailed where they are not alike."""
        super().__init__(config, replicas, on_end)
        self._alike = {replicas[0].where: replicas[0].ready.facts()}
        for replica in replicas:
            self._check(replica)
        process = Process(FRONT, make_codec, __version__, on_met=self._met)
        self.system: ProcessSystem = ProcessSystem(process, replicas[0].loop_config.seed, on_failure=self.failed)
        self._hosts = replicas[0].hosts

    def _check(self, replica: ReplicaProcess) -> None:
        check_alike(self._alike | {replica.where: replica.ready.facts()})

    def _met(self, process: str) -> None:
        for replica in self.live():
            if replica.name == process:
                replica.met.set()

    def actors(self, gateway: Gateway) -> tuple[ActorSpec, ...]:
        several = self.live()
        return routed_front(several, gateway, router_of(self._config, several, self))

    def join(self) -> None:
        for replica in self.live():
            self._begin(replica)
            self._meet(replica)
            watch_replica(self.system, replica.names)

    def close(self) -> None:
        super().close()
        self._hosts.close()

    def _retire(self, lost: Names) -> None:
        """They end with their process."""

    def _end(self, names: Names) -> None:
        """Their process leaves with the last of them."""
        self.system.retire([name for name in all_names(names) if name in names.own])

    def _left_empty(self, place: int) -> None:
        self._hosts.release(place)

    def _load(self, share: ServerConfig, names: Names) -> ReplicaProcess:
        place = self._places[names.replica]
        while True:
            try:
                host = self._hosts.of(place, self._stopping)
                beside = self._hosts.beside(place, self._stopping)
                replica = ReplicaProcess(share, names, self._hosts, host, place, beside)
                replica.wait_until_ready()
                self._check(replica)
            except HostLost as lost:
                log.warning("a replica waits for another host", replica=names.replica, why=str(lost))
            else:
                return replica

    def _begin(self, replica: ReplicaProcess) -> None:
        replica.join(self.system)

    def _meet(self, replica: ReplicaProcess) -> None:
        replica.meet(self.system)
