"""Which replicas live on which host, as the settings say. Each has a place, and there are as many as there may be."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from pawl.actors.names import UNIFIED
from pawl.build.hosts.addresses import host_and_port
from pawl.build.roles import num_places, roles_of
from pawl.config import ConfigError, ServerConfig

NO_KEYS = "keys: links between hosts go with keys only: --keys DIR, the same on each host, which `pawl keys DIR` makes"
MIXED = "mixed"
"""Role of a node whose replicas have several."""


class Layout(NamedTuple):
    """Replicas side by side, as many on each host."""

    num_nodes: int
    """With that of the head, where replicas live there."""
    num_here: int
    """Replicas on each."""
    head_serves: bool
    """Node 0 is the host of the head."""
    roles: tuple[str, ...] = ()
    """Of all nodes, by number: that of all its replicas, or MIXED. Empty: prefill and decode are not apart."""
    head_block: int = 0
    """Which of the equal parts of all replicas is on node 0; the others are on the next nodes, in their order."""

    @property
    def num_joined(self) -> int:
        """Nodes that are to join."""
        return self.num_nodes - self.head_serves

    def node_of(self, place: int) -> int:
        """The node, from 0, of the replica at this place."""
        block = place // self.num_here
        return 0 if block == self.head_block else block + (block < self.head_block)

    @property
    def joined_roles(self) -> tuple[str, ...]:
        """Of nodes that are to join."""
        return self.roles[int(self.head_serves) :] or (UNIFIED,) * self.num_joined

    def unwanted(self, role: str | None) -> str:
        """Why no node of this role is ever needed; empty: one is. None: it takes what there is."""
        if role is None or role in self.joined_roles:
            return ""
        there = f"those that join are for {', '.join(dict.fromkeys(self.joined_roles))}"
        if UNIFIED in self.joined_roles:
            there = "prefill and decode are not apart"
        return f"no node is needed for {role}: {there}"

    @property
    def places(self) -> list[int]:
        """In the order in which they are taken, as far as not all are: first one on each node."""
        return sorted(range(self.num_nodes * self.num_here), key=lambda place: divmod(place, self.num_here)[::-1])


def layout_of(config: ServerConfig) -> Layout:
    """Raises ConfigError for one that cannot be."""
    _check_role(config)
    roles, count, num_nodes = roles_of(config), num_places(config), config.nodes
    if config.ray is not None:
        return _layout_of_ray(config, count)
    if count % num_nodes:
        most = "dp" if config.max_dp is None else "max_dp"
        told = f"{most} is {count}" if config.disaggregate is None else f"there are {count}"
        ranks = "; ranks of a replica live on one host, where they meet in memory" if count < num_nodes else ""
        raise ConfigError(f"nodes: each of {num_nodes} nodes has as many replicas, and {told}{ranks}", "nodes")
    if config.max_dp is not None and config.dp < num_nodes:
        raise ConfigError(f"dp: at least one replica for each of {num_nodes} nodes, not {config.dp}", "dp")
    num_here = count // num_nodes
    ever = (*roles, *[UNIFIED] * (count - len(roles)))
    blocks = [_role_of(ever[first : first + num_here]) for first in range(0, count, num_here)]
    at = _head_block(config, blocks)
    layout = Layout(num_nodes, num_here, config.head_serves, (blocks.pop(at), *blocks), at)
    if not layout.num_joined:
        for name in ("listen", "keys"):
            if getattr(config, name) is not None:
                raise ConfigError(f"{name}: all replicas are on this host, and nobody joins; say --nodes", name)
        return layout
    if config.listen is None:
        raise ConfigError("nodes: say where the head waits for them, --listen tcp://HOST:PORT", "listen")
    if config.keys is None:
        raise ConfigError(NO_KEYS, "keys")
    _check_listen(config)
    return layout


def _layout_of_ray(config: ServerConfig, num_replicas: int) -> Layout:
    """Each replica has a node of its own, wherever Ray has room for it."""
    if config.nodes > 1:
        raise ConfigError("nodes: with --ray each replica has a place of its own, on machines that Ray has", "nodes")
    if config.disaggregate is not None:
        raise ConfigError("disaggregate: with --ray all replicas are alike; say --nodes, and start them by hand", "ray")
    if config.keys is None:
        raise ConfigError(NO_KEYS, "keys")
    _check_listen(config)
    return Layout(num_replicas, 1, head_serves=False)


def _check_listen(config: ServerConfig) -> None:
    try:
        if config.listen is not None:
            host_and_port(config.listen)
    except ValueError as error:
        raise ConfigError(f"listen: {error}", "listen") from error


def _check_role(config: ServerConfig) -> None:
    apart = config.disaggregate is not None and config.nodes > 1 and config.head_serves
    if config.role is not None and not apart:
        raise ConfigError("role: of replicas on the host of the head, where --disaggregate shares them out", "role")


def _role_of(roles: Sequence[str]) -> str:
    return roles[0] if len(set(roles)) == 1 else MIXED


def _head_block(config: ServerConfig, blocks: Sequence[str]) -> int:
    """Where the replicas of the head's host begin. Raises ConfigError where its role cannot be."""
    if config.role is None:
        return 0
    if config.role not in blocks:
        told = f"{config.disaggregate} on {config.nodes} nodes are {', '.join(blocks)}"
        raise ConfigError(f"role: no host is for {config.role} alone: {told}", "role")
    return blocks.index(config.role)


def threads_of(config: ServerConfig, num_here: int) -> int | None:
    """Threads of each of so many replicas on this host; None: as one alone has. Raises ConfigError."""
    if num_here == 1 or config.model == "ghost":
        return config.threads
    cores = config.threads or len(os.sched_getaffinity(0))
    if cores < num_here:
        raise ConfigError(f"dp: {num_here} replicas need a thread each, and there are {cores}", "dp")
    return cores // num_here
