"""The replicas of a model: what each has of the machine, and who starts one again."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count as count_from
from pathlib import Path
from queue import Empty, PriorityQueue
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import structlog

from pawl.actors.gateway import Gateway
from pawl.actors.messages.replicas import ReplicaFailed, ReplicaUp
from pawl.actors.names import PREFILL, ROUTER, Names, is_behind_router, names_of
from pawl.actors.placement import AFFINITY_BOUND, PLACEMENTS
from pawl.actors.router import Router
from pawl.actors.runtime.local import LocalSystem
from pawl.actors.scaling import Rule
from pawl.actors.starter import Starter
from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.hosts.layout import layout_of, threads_of
from pawl.build.parts import Parts
from pawl.build.ready import Home
from pawl.build.roles import HAND_OVER_GB, arithmetic_of, num_places, roles_of
from pawl.build.wiring import ActorSpec, all_names, engine_actors, replica_actors, spawn_all, watch_replica
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.weights.report import Report, unheard
from pawl.loops.saving import WritePolicy
from pawl.loops.select import LoopConfig

log = structlog.get_logger("pawl.build.replicas")

SHARED_OUT = ("max_running", "max_queued", "kv_tokens")
"""Settings of all replicas, of which each has an equal part, in whole numbers."""
MAX_RESTARTS, WITHIN_S = 60, 600.0
"""Of all replicas together: what is lost more often is not lost by accident."""
BACKOFF_S, RECENT_S, LONGEST_S = 0.1, 30.0, 10.0
"""One is started again after so long; after twice that for each restart in the last seconds, up to the longest."""
FREE_S = 0.25
"""How often whoever waits for a place looks whether it is still wanted."""
ENOUGH = f"{MAX_RESTARTS} starts within {WITHIN_S:g} s were enough"
Load = Callable[[ServerConfig, Report, Names], Parts]
OnEnd = Callable[[str, BaseException], None]


class ReplicasLost(RuntimeError):
    """No replica is left, and none is started again."""


def share_of(config: ServerConfig, place: int) -> ServerConfig:
    """What the replica at this place, from 0, is set up with: pages and requests are shared out evenly among all,
    memory, disk and threads of a host among those that live there, and folders are its own. Raises ConfigError where a
    share is nothing, or where replicas cannot live as they were told."""
    roles, count = roles_of(config), num_places(config)
    layout = layout_of(config)
    if count == 1:
        return config
    here = layout.num_beside(place)
    if config.device != "cpu" and here > 1 and not config.in_processes:
        raise ConfigError(f"dp: {here} replicas on CUDA devices of a host need --runtime processes", "dp")
    own = arithmetic_of(config, roles[min(place, len(roles) - 1)]) | {"storage_gb": config.storage_gb / here}
    if layout.node_of(place) == 0 and config.head_serves:  # a node knows its own cores
        own["threads"] = threads_of(config, here)
    whole = {name: (getattr(config, name), count) for name in SHARED_OUT} | {
        "trace_limit_mb": (config.trace_limit_mb, here)
    }
    for name, (amount, among) in whole.items():
        least = config.page_size if name == "kv_tokens" else 1
        if amount is not None and amount // among < least:
            raise ConfigError(f"{name}: {amount} is less than {least} for each of {among} replicas", name)
        own[name] = None if amount is None else amount // among
    for name in ("kv_memory_gb", "host_cache_gb"):
        if (gib := getattr(config, name)) is not None:
            own[name] = gib / here
    if config.disaggregate is not None and config.host_cache_gb is None and config.storage_dir is None:
        # There for what is handed over alone: what is computed here stays where it is.
        own |= {"host_cache_gb": HAND_OVER_GB, "write_policy": WritePolicy.SELECTIVE.value}
    for name in ("trace_dir", "storage_dir"):
        if (folder := getattr(config, name)) is not None:
            own[name] = str(Path(folder).absolute() / f"replica-{place}")
    return msgspec.structs.replace(config, **own)


class Replica(Protocol):
    """What is known of a replica wherever it lives: its parts, or the process that has them."""

    @property
    def names(self) -> Names: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def loop_config(self) -> LoopConfig: ...

    @property
    def home(self) -> Home: ...

    @property
    def pid(self) -> int: ...

    def close(self) -> object:
        """Its actors have ended: let go of what they had."""


R = TypeVar("R", bound=Replica)


def places_of(config: ServerConfig) -> list[int]:
    """All there are, in the order in which they are taken: those of the replicas at the start come first. Raises
    ConfigError."""
    count = num_places(config)
    layout = layout_of(config)
    return list(range(count)) if count == len(roles_of(config)) else layout.places


def are_routed(config: ServerConfig) -> bool:
    """Whether a router stands before the replicas."""
    return num_places(config) > 1 or config.in_processes


def router_of(config: ServerConfig, replicas: Sequence[Replica], starter: Starter) -> Router:
    """The router that the settings name."""
    placement = PLACEMENTS[config.router_policy](config.page_size, AFFINITY_BOUND)
    names, at = [replica.names for replica in replicas], config.scale_at or replicas[0].loop_config.max_running
    taking = sum(each.role != PREFILL for each in names)
    rule = Rule(taking, max(taking, config.max_dp or 0), at, down_s=config.scale_down_s)
    return Router(placement, names, starter, rule=rule, linked=config.in_processes)


class Replicas(ABC, Generic[R]):
    """The replicas of an engine (a `Starter`). A thread of its own ends one and starts another in its place, as loading
    takes long."""

    system: LocalSystem
    """The one in which the front lives."""

    def __init__(self, config: ServerConfig, replicas: Sequence[R], on_end: OnEnd) -> None:
        """`on_end` is called with what is lost for good: an actor of the front, or, in the router's name, the last
        replica."""
        self._config = config
        self._on_end = on_end
        self._routed = are_routed(config)
        self._made = {replica.names.replica: replica for replica in replicas}
        """Replicas that are not lost, by number."""
        places = places_of(config)
        self._places = {replica.names.replica: place for place, replica in zip(places, replicas, strict=False)}
        """Place of each replica that is not lost, or is being started, by number."""
        self._numbers = count_from(len(replicas))
        self._free: PriorityQueue[int] = PriorityQueue()
        """Places, as where they stand in `_order`, in which no replica is, nor will be."""
        self._order = places
        for at in range(len(replicas), len(places)):
            self._free.put(at)
        self._restarts: deque[float] = deque(maxlen=MAX_RESTARTS)
        """When the latest were, monotonic seconds."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()

    @abstractmethod
    def actors(self, gateway: Gateway) -> tuple[ActorSpec, ...]:
        """Of this process, in the order in which they stop."""

    @abstractmethod
    def join(self) -> None:
        """Let replicas elsewhere and the actors here find each other."""

    @abstractmethod
    def _retire(self, lost: Names) -> None:
        """End what is left of the actors of a lost replica."""

    @abstractmethod
    def _load(self, share: ServerConfig, names: Names) -> R:
        """Make a replica."""

    @abstractmethod
    def _begin(self, replica: R) -> None:
        """Let its actors run. Does not wait."""

    @abstractmethod
    def _end(self, names: Names) -> None:
        """End its actors, one after the other; they live, and nobody needs them any more."""

    def _left_empty(self, place: int) -> None:
        """No replica is there, nor will be one for now."""

    def _meet(self, replica: R) -> None:
        """Wait until it can be sent to."""

    def restart(self, lost: Names, *, why_not: str = "") -> str:
        """See `Starter.restart`. In the router's thread."""
        if self._stopping.is_set():
            why_not = why_not or "the engine stops"
        wait_s = None if why_not else self._next_wait_s()
        threading.Thread(target=self._replace, args=(lost, wait_s), name="restart", daemon=True).start()
        return why_not or (ENOUGH if wait_s is None else "")

    def add(self, role: str) -> str:
        """See `Starter.add`. In the router's thread."""
        if self._stopping.is_set():
            return "the engine stops"
        threading.Thread(target=self._add, args=(role,), name="add", daemon=True).start()
        return ""

    def end(self, names: Names) -> None:
        """See `Starter.end`. In the router's thread."""
        threading.Thread(target=self._part, args=(names,), name="end", daemon=True).start()

    def _next_wait_s(self) -> float | None:
        """One start more: how long to wait before it. None: there were enough."""
        with self._lock:
            now = time.monotonic()
            if sum(now - at < WITHIN_S for at in self._restarts) >= MAX_RESTARTS:
                return None
            recent = sum(now - at < RECENT_S for at in self._restarts)
            self._restarts.append(now)
            return min(LONGEST_S, BACKOFF_S * 2.0**recent)

    def over(self, name: str, reason: str) -> None:
        """See `Starter.over`."""
        self._on_end(ROUTER, ReplicasLost(f"{name} is gone: {reason}"))

    def failed(self, name: str, error: BaseException) -> None:
        """An actor has failed; of one that is a replica's, behind the router, that decides whether all is over."""
        if not (self._routed and is_behind_router(name)):
            self._on_end(name, error)

    def live(self) -> list[R]:
        """Those that are not lost."""
        return list(self._made.values())

    def homes(self) -> list[dict[str, Any]]:
        """Where each lives that is not lost: its number, role, process, and machine."""
        return [
            {"replica": each.names.replica, "role": each.names.role, "pid": each.pid, **each.home._asdict()}
            for each in self.live()
        ]

    def stop(self) -> tuple[str, ...]:
        """Start none any more. Names of all actors, in the order in which they stop."""
        with self._lock:
            self._stopping.set()
            return all_names(*(replica.names for replica in self.live()))

    def close(self) -> None:
        """All actors have ended: let go of what they had."""
        for replica in self.live():
            replica.close()

    def _replace(self, lost: Names, wait_s: float | None) -> None:
        """End what is left of a replica, and start one in its place after so long; None: never."""
        self._retire(lost)
        self._start_at(self._let_go(lost), lost.role, wait_s)

    def _part(self, names: Names) -> None:
        """One has left."""
        self._end(names)
        self._start_at(self._let_go(names), names.role, None)

    def _let_go(self, gone: Names) -> int:
        """Its actors have ended. Its place."""
        # Until it is closed, the end of the engine closes it too; it is gone before another one takes as much memory.
        self._made[gone.replica].close()
        with self._lock:
            del self._made[gone.replica]
            return self._places.pop(gone.replica)

    def _add(self, role: str) -> None:
        """Start one where there is room, or will be: one that has left may still be ending."""
        while not self._stopping.is_set():
            with suppress(Empty):
                self._start_at(self._order[self._free.get(timeout=FREE_S)], role, 0.0)
                return

    def _start_at(self, place: int, role: str, wait_s: float | None) -> None:
        """Start one at this place after so long, and again where that fails; None: never."""
        while wait_s is not None and not self._stopping.wait(wait_s):
            with self._lock:
                names = names_of(next(self._numbers), role)
                self._places[names.replica] = place
            if (reason := self._start(names)) is None:
                return
            wait_s = self._next_wait_s()
            if wait_s is None:
                self.system.send(ROUTER, ReplicaFailed(f"{reason}; {ENOUGH}", role))
        self._left_empty(place)
        self._free.put(self._order.index(place))

    def _start(self, names: Names) -> str | None:
        """Start one, and have it take part. Why it could not be started; None: it was, or the engine stops."""
        try:
            replica = self._load(share_of(self._config, self._places[names.replica]), names)
            with self._lock:
                if self._stopping.is_set():
                    replica.close()
                    return None
                self._made[names.replica] = replica
                self._begin(replica)
            self._meet(replica)
        except Exception as error:
            with self._lock:
                failed = self._made.pop(names.replica, None)
                del self._places[names.replica]
            if failed is not None:
                failed.close()
            if self._stopping.is_set():
                return None
            log.exception("a replica could not be started", replica=names.replica)
            return f"{type(error).__name__}: {error}"
        log.info("a replica was started", replica=names.replica)
        self.system.send(ROUTER, ReplicaUp(names))
        watch_replica(self.system, names)
        return None


class LocalReplicas(Replicas[Parts]):
    """Replicas as actors of this process."""

    def __init__(self, config: ServerConfig, replicas: Sequence[Parts], load: Load, on_end: OnEnd) -> None:
        super().__init__(config, replicas, on_end)
        self.system = LocalSystem(replicas[0].loop_config.seed, on_failure=self.failed)
        self._load_here = load

    def actors(self, gateway: Gateway) -> tuple[ActorSpec, ...]:
        several, timeout_s = self.live(), self._config.request_timeout_s
        router = router_of(self._config, several, self) if self._routed else None
        return engine_actors(several, gateway, timeout_s, router=router, turned_at=lambda: gateway.turned_at)

    def join(self) -> None:
        """All are here."""

    def _retire(self, lost: Names) -> None:
        self._end(lost)

    def _end(self, names: Names) -> None:
        self.system.retire([name for name in all_names(names) if name in names.own])

    def _load(self, share: ServerConfig, names: Names) -> Parts:
        return self._load_here(share, unheard, names)

    def _begin(self, replica: Parts) -> None:
        specs = replica_actors(replica, self._config.request_timeout_s, names=replica.names)
        spawn_all(self.system, specs)
