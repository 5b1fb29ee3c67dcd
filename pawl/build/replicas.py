"""Several replicas of one model in one process: what each has of the machine, and who starts one again."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from pawl.actors.gateway import Gateway
from pawl.actors.messages.replicas import ReplicaFailed, ReplicaUp
from pawl.actors.names import ROUTER, Names, names_of
from pawl.actors.placement import AFFINITY_BOUND, PLACEMENTS
from pawl.actors.router import Router, Starter
from pawl.actors.runtime.local import LocalSystem
from pawl.build.parts import Parts
from pawl.build.wiring import ActorSpec, all_names, engine_actors, replica_actors, spawn_all
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.weights.report import Report, unheard

log = structlog.get_logger("pawl.build.replicas")

SHARED_OUT = ("max_running", "max_queued", "kv_tokens", "trace_limit_mb")
"""Settings of which each replica has an equal part, in whole numbers."""
MAX_RESTARTS = 8
"""Of all replicas together: what is lost more often is not lost by accident."""
Load = Callable[[ServerConfig, Report, Names], Parts]


class ReplicasLost(RuntimeError):
    """No replica is left, and none is started again."""


def share_of(config: ServerConfig, place: int) -> ServerConfig:
    """What the replica at this place, from 0, is set up with: pages, requests, lower tiers and threads are shared out
    evenly, and folders are its own. Raises ConfigError where a share is nothing."""
    count = config.dp
    if count == 1:
        return config
    if config.runtime == "processes":
        raise ConfigError(f"dp: {count} replicas live in one process; say --runtime local", "runtime")
    if config.device != "cpu":
        raise ConfigError(f"dp: {count} replicas in one process are for the CPU; a device holds one", "dp")
    own: dict[str, object] = {"storage_gb": config.storage_gb / count}
    cores = config.threads or len(os.sched_getaffinity(0))
    if config.model != "ghost":
        own["threads"] = cores // count
        if cores < count:
            raise ConfigError(f"dp: {count} replicas need a thread each, and there are {cores}", "dp")
    for name in SHARED_OUT:
        whole = getattr(config, name)
        least = config.page_size if name == "kv_tokens" else 1
        if whole is not None and whole // count < least:
            raise ConfigError(f"{name}: {whole} is less than {least} for each of {count} replicas", name)
        own[name] = None if whole is None else whole // count
    for name in ("kv_memory_gb", "host_cache_gb"):
        if (gib := getattr(config, name)) is not None:
            own[name] = gib / count
    for name in ("trace_dir", "storage_dir"):
        if (folder := getattr(config, name)) is not None:
            own[name] = str(Path(folder) / f"replica-{place}")
    return msgspec.structs.replace(config, **own)


def router_of(config: ServerConfig, replicas: Sequence[Parts], starter: Starter) -> Router | None:
    """The router that the settings name, where there are several replicas."""
    if len(replicas) == 1:
        return None
    placement = PLACEMENTS[config.router_policy](config.page_size, AFFINITY_BOUND)
    return Router(placement, [parts.names for parts in replicas], starter)


class LocalReplicas:
    """Replicas as actors of one system (a `Starter`). A thread of its own ends one and starts another in its place, as
    loading takes long."""

    def __init__(
        self,
        config: ServerConfig,
        system: LocalSystem,
        replicas: Sequence[Parts],
        load: Load,
        on_end: Callable[[str, BaseException], None],
    ) -> None:
        """`on_end` is called, in the router's name, once no replica is left."""
        self._config = config
        self._system = system
        self._load = load
        self._on_end = on_end
        self._several = len(replicas) > 1
        self._parts = {parts.names.replica: parts for parts in replicas}
        """Of replicas that are not lost, by number."""
        self._places = {parts.names.replica: place for place, parts in enumerate(replicas)}
        """Place of each replica that ever was, by number."""
        self._left = MAX_RESTARTS
        self._lock = threading.Lock()
        self._stopping = False

    def actors(self, gateway: Gateway) -> tuple[ActorSpec, ...]:
        """Of the engine behind this gateway, in the order in which they stop."""
        several, timeout_s = list(self._parts.values()), self._config.request_timeout_s
        router = router_of(self._config, several, self)
        return engine_actors(several, gateway, timeout_s, router=router, turned_at=lambda: gateway.turned_at)

    def restart(self, lost: Names) -> bool:
        """See `Starter.restart`. In the router's thread."""
        again = self._left > 0 and not self._stopping
        names = None
        if again:
            self._left -= 1
            names = names_of(len(self._places))
            self._places[names.replica] = self._places[lost.replica]
        threading.Thread(target=self._replace, args=(lost, names), name="restart", daemon=True).start()
        return again

    def over(self, name: str, reason: str) -> None:
        """See `Starter.over`."""
        self._on_end(ROUTER, ReplicasLost(f"{name} is gone: {reason}"))

    def is_one_of(self, name: str) -> bool:
        """Whether an actor of this name is a replica's, behind the router."""
        return self._several and any(name in names_of(number).own for number in self._places)

    def stop(self) -> tuple[str, ...]:
        """Start none any more. Names of all actors, in the order in which they stop."""
        with self._lock:
            self._stopping = True
            return all_names(*(parts.names for parts in self._parts.values()))

    def close(self) -> None:
        """All actors have ended: let go of what they had."""
        for parts in self._parts.values():
            parts.close()

    def _replace(self, lost: Names, names: Names | None) -> None:
        """End what is left of a replica, and start one of these names, if any, in its place."""
        self._system.retire([name for name in all_names(lost) if name in lost.own])
        with self._lock:
            old = self._parts.pop(lost.replica)
        old.close()
        del old  # before another one takes as much memory
        if names is not None:
            self._start(names)

    def _start(self, names: Names) -> None:
        try:
            parts = self._load(share_of(self._config, self._places[names.replica]), unheard, names)
            specs = replica_actors(parts, self._config.request_timeout_s, names=names)
            with self._lock:
                if self._stopping:
                    parts.close()
                    return
                self._parts[names.replica] = parts
                spawn_all(self._system, specs)
        except Exception as error:
            log.exception("a replica could not be started again", replica=names.replica)
            self._system.send(ROUTER, ReplicaFailed(f"{type(error).__name__}: {error}"))
            return
        log.info("a replica was started again", replica=names.replica)
        self._system.send(ROUTER, ReplicaUp(names))
