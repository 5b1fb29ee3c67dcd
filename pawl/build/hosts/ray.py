"""Hosts that a Ray cluster has: Ray knows the machines, places an agent on one for each replica, and starts it again.

    head ── one placement group and one task for each replica ──► Ray
    agent of node.K ── Join(place) ──► door of the head         from here on as with nodes that are started by hand

A placement group has all that the ranks of a replica need, on one machine, as they meet in its memory.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import structlog

from pawl.actors.runtime.processes.keys import Keys
from pawl.build.hosts.head import NodeHosts
from pawl.build.hosts.host import Host
from pawl.build.hosts.layout import Layout
from pawl.build.hosts.ray_agent import hold
from pawl.build.roles import num_ranks, roles_of
from pawl.config import ConfigError, ServerConfig

log = structlog.get_logger("pawl.build.hosts")

REACH_S = 10.0
"""What the head of a cluster may take to let somebody in."""
Needs = dict[str, float]
"""Of a replica, by Ray's names of resources."""


class Placed(NamedTuple):
    """What Ray has for one replica."""

    group: Any
    agent: Any
    """The task."""


def needs_of(config: ServerConfig, role: str) -> Needs:
    """CPUs and GPUs of a replica of this role with all its ranks. Raises ConfigError where nobody says how many
    CPUs."""
    ranks = num_ranks(config, role) * config.pp
    if config.device != "cpu":
        return {"CPU": 1.0, "GPU": float(ranks)}
    if config.threads is None and config.model != "ghost":
        raise ConfigError("ray: say how many CPUs Ray is to keep for each replica: --threads N", "threads")
    return {"CPU": float(config.threads or ranks)}


class RayHosts(NodeHosts):
    """`Hosts` with one node for each replica, which Ray places when that replica is to be."""

    def __init__(self, config: ServerConfig, layout: Layout, keys: Keys) -> None:
        """Raises ConfigError where there is no Ray, no cluster, or too small a one; OSError as `NodeHosts`."""
        assert config.ray is not None
        assert config.keys is not None
        self._ray = _connected(config.ray)
        self._needs = [needs_of(config, block.role) for block in layout.blocks]
        """By place."""
        self._placed: dict[int, Placed] = {}
        """By place."""
        self._placing = threading.Lock()
        try:
            _check_room(self._ray.nodes(), self._needs[: len(roles_of(config))])
            listen = config.listen or f"tcp://{self._ray.util.get_node_ip_address()}:0"
            super().__init__(layout, listen, keys, str(Path(config.keys).absolute()), config.node_timeout_s)
        except BaseException:
            self._ray.shutdown()
            raise
        self._advice = "`ray status` says what Ray waits for"

    def of(self, place: int, stopping: threading.Event) -> Host:
        self._place(place)
        with self._changed:
            self._until = time.monotonic() + self._timeout_s  # those that nobody wants yet never come
        return super().of(place, stopping)

    def release(self, place: int) -> None:
        with self._placing:
            placed = self._placed.pop(place, None)
        if placed is not None:
            self._remove(placed)

    def close(self) -> None:
        super().close()
        with self._placing:
            left = [self._placed.popitem()[1] for _ in range(len(self._placed))]
        for placed in left:
            self._remove(placed)
        if self._ray.is_initialized():
            self._ray.shutdown()

    def _is_wanted(self, number: int) -> bool:
        return number in self._placed

    def _place(self, place: int) -> None:
        """Have Ray keep room, and hold an agent there, unless it does."""
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        with self._placing:
            if place in self._placed or self._closed:
                return
            needs = self._needs[place]
            group = placement_group([needs], strategy="STRICT_PACK")
            task = self._ray.remote(hold).options(
                num_cpus=needs["CPU"],
                num_gpus=needs.get("GPU", 0.0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group),
                max_retries=-1,
                retry_exceptions=True,
                name=f"pawl node {place}",
            )
            agent = task.remote(self.address, self._keys_folder, place, self._timeout_s)
            self._placed[place] = Placed(group, agent)
        log.info("Ray places a node", place=place, needs=needs)

    def _remove(self, placed: Placed) -> None:
        from ray.util.placement_group import remove_placement_group

        with contextlib.suppress(Exception):  # the cluster may be gone, and then there is nothing to be removed
            self._ray.cancel(placed.agent, force=True)
            remove_placement_group(placed.group)


def _connected(address: str) -> Any:
    """Ray's module, once it knows the cluster. Raises ConfigError."""
    if address != "auto":
        _check_reached(address)
    try:
        import ray
    except ImportError as error:
        raise ConfigError("ray: it is not installed: pip install 'pawl-engine[ray]'", "ray") from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # many kinds, by what is wrong with the address
        told = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConfigError(f"ray: no cluster at {address}: {told}", "ray") from error
    return ray


def _check_reached(address: str) -> None:
    """Raises ConfigError where nobody is there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ConfigError(f"ray: auto, or HOST:PORT of the cluster's head, not {address!r}", "ray")
    try:
        socket.create_connection((host, int(port)), REACH_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"ray: no cluster at {address}: {error}", "ray") from error


def _check_room(nodes: list[dict[str, Any]], needs: Sequence[Needs]) -> None:
    """Raises ConfigError where so many replicas have no room, each on one machine, even if nobody else had any."""
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    left = [dict(machine) for machine in machines]
    for count, needed in enumerate(sorted(needs, key=lambda each: -each.get("GPU", each["CPU"]))):
        free = (each for each in left if all(each.get(name, 0.0) >= amount for name, amount in needed.items()))
        machine = next(free, None)
        if machine is None:
            each = " and ".join(f"{amount:g} {name}" for name, amount in needed.items())
            there = ", ".join("+".join(f"{machine.get(name, 0.0):g} {name}" for name in needed) for machine in machines)
            raise ConfigError(
                f"ray: each of {len(needs)} replicas needs {each} on one machine, and there is room for {count}: "
                f"{there or 'no machine'}",
                "dp",
            )
        for name, amount in needed.items():
            machine[name] -= amount
