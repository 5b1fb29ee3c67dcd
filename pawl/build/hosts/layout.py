"""Which replicas live on which host, as the settings say. Each has a place, and there are as many as there may be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from pawl.actors.names import DECODE, UNIFIED
from pawl.build.hosts.addresses import host_and_port
from pawl.build.roles import num_places, roles_of
from pawl.config import ConfigError, ServerConfig

NO_KEYS = "keys: links between hosts go with keys only: --keys DIR, the same on each host, which `pawl keys DIR` makes"
MIXED = "mixed"
"""Role of a node whose replicas have several."""


class Block(NamedTuple):
    """Replicas of one host, at places behind each other."""

    first: int
    """Place of the first."""
    size: int
    role: str = UNIFIED
    """Of all, or MIXED."""

    def __contains__(self, place: object) -> bool:
        return place in range(self.first, self.first + self.size)


class Layout(NamedTuple):
    """Replicas on hosts."""

    blocks: tuple[Block, ...]
    """Of the nodes, by number; one is that of the head, where replicas live there."""
    head_serves: bool
    """Node 0 is the host of the head."""
    hosts_each: int = 1
    """Nodes that share out the ranks of a replica. Then each block is one of so many nodes behind each other, the first
    of which has the processes of replicas, and all have ranks of each."""
    threads: int | None = None
    """CPU threads of each host, as the user says; None: as many as it has cores."""

    @property
    def num_nodes(self) -> int:
        """With that of the head, where replicas live there."""
        return len(self.blocks) * self.hosts_each

    @property
    def num_joined(self) -> int:
        """Nodes that are to join."""
        return self.num_nodes - self.head_serves

    def node_of(self, place: int) -> int:
        """The node, from 0, of the replica at this place."""
        return self.blocks.index(self.block_of(place)) * self.hosts_each

    def block_of(self, place: int) -> Block:
        """All replicas on the host of this place."""
        return next(block for block in self.blocks if place in block)

    def num_beside(self, place: int) -> int:
        """Replicas on the host of this place, with its own."""
        return self.block_of(place).size

    @property
    def joined(self) -> tuple[Block, ...]:
        """Of each node that is to join."""
        every = tuple(block for block in self.blocks for _ in range(self.hosts_each))
        return every[int(self.head_serves) :]

    @property
    def joined_roles(self) -> tuple[str, ...]:
        """Of nodes that are to join."""
        return tuple(block.role for block in self.joined)

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
        ranked = sorted((at, block.first) for block in self.blocks for at in range(block.size))
        return [first + at for at, first in ranked]


def side_by_side(roles: Sequence[str], sizes: Iterable[int]) -> list[Block]:
    """Blocks of these sizes, one behind the other, of replicas with these roles."""
    ends = [0, *accumulate(sizes)]
    return [
        Block(first, end - first, roles[first] if len(set(roles[first:end])) == 1 else MIXED)
        for first, end in pairwise(ends)
    ]


def layout_of(config: ServerConfig) -> Layout:
    """Raises ConfigError for one that cannot be."""
    _check_role(config)
    roles, count, num_nodes = roles_of(config), num_places(config), config.nodes
    if config.ray is not None:
        return _layout_of_ray(config, roles, count)
    each = hosts_each(config, count)
    sizes = _sizes(config, roles, count, num_nodes // each)
    if config.max_dp is not None and config.dp < num_nodes // each:
        raise ConfigError(f"dp: at least one replica for each of {num_nodes // each} nodes, not {config.dp}", "dp")
    blocks = side_by_side((*roles, *[UNIFIED] * (count - len(roles))), sizes)
    layout = Layout((blocks.pop(_head_block(config, blocks)), *blocks), config.head_serves, each, config.threads)
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


def hosts_each(config: ServerConfig, count: int) -> int:
    """Hosts for each of so many replicas: as the user says, else one, unless there are more hosts than replicas. Raises
    ConfigError."""
    asked, nodes = config.nodes_per_replica, config.nodes
    each, rest = divmod(nodes, count) if asked is None and count < nodes else (asked or 1, nodes % (asked or 1))
    name = "nodes" if asked is None else "nodes_per_replica"
    if rest:
        told = f"each of {count} replicas has as many" if asked is None else f"each replica has {asked}"
        raise ConfigError(f"{name}: of {nodes} nodes {told}, and that leaves {rest}", name)
    if each > config.pp:
        raise ConfigError(
            f"{name}: a replica on {each} nodes has a stage on each (--pp), and pp is {config.pp}; ranks of a stage "
            "(--tp, --ep) live on one host, where they meet in memory",
            name,
        )
    return each


def _sizes(config: ServerConfig, roles: Sequence[str], count: int, num_nodes: int) -> list[int]:
    """Replicas of each host, or of as many as a replica has, in the order of their places: as many on each; where that
    does not come out even, each has one role. Raises ConfigError."""
    if count % num_nodes == 0:
        return [count // num_nodes] * num_nodes
    if config.disaggregate is None or count < num_nodes:
        most = "dp" if config.max_dp is None else "max_dp"
        needs, told = "as many replicas", f"{most} is {count}"
        if config.disaggregate is not None:
            needs, told = "one replica at least", f"there are {count}"
        raise ConfigError(f"nodes: each of {num_nodes} nodes has {needs}, and {told}", "nodes")
    decoding = roles.count(DECODE)
    prefilling = count - decoding
    share = (2 * num_nodes * decoding + count) // (2 * count)
    hosts = min(max(share, 1, num_nodes - prefilling), decoding, num_nodes - 1)
    return _evenly(decoding, hosts) + _evenly(prefilling, num_nodes - hosts)


def _evenly(count: int, hosts: int) -> list[int]:
    """The first ones have one more, where there is a rest."""
    return [count // hosts + (at < count % hosts) for at in range(hosts)]


def _layout_of_ray(config: ServerConfig, roles: Sequence[str], num_replicas: int) -> Layout:
    """Each replica has a node of its own, wherever Ray has room for it."""
    if config.nodes > 1:
        raise ConfigError("nodes: with --ray each replica has a place of its own, on machines that Ray has", "nodes")
    if config.nodes_per_replica is not None:
        told = "with --ray all ranks of a replica are on one machine; stages on several go with --nodes"
        raise ConfigError(f"nodes_per_replica: {told}", "nodes_per_replica")
    if config.keys is None:
        raise ConfigError(NO_KEYS, "keys")
    _check_listen(config)
    ever = (*roles, *[UNIFIED] * (num_replicas - len(roles)))
    return Layout(tuple(side_by_side(ever, [1] * num_replicas)), head_serves=False, threads=config.threads)


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


def _head_block(config: ServerConfig, blocks: Sequence[Block]) -> int:
    """Which of them is on the host of the head. Raises ConfigError where its role cannot be."""
    roles = [block.role for block in blocks]
    if config.role is None:
        return 0
    if config.role not in roles:
        told = f"{config.disaggregate} on {config.nodes} nodes are {', '.join(roles)}"
        raise ConfigError(f"role: no host is for {config.role} alone: {told}", "role")
    return roles.index(config.role)


def threads_of(config: ServerConfig, num_here: int) -> int | None:
    """Threads of each of so many replicas on this host; None: as one alone has. Raises ConfigError."""
    if num_here == 1 or config.model == "ghost":
        return config.threads
    cores = config.threads or len(os.sched_getaffinity(0))
    if cores < num_here:
        raise ConfigError(f"dp: {num_here} replicas need a thread each, and there are {cores}", "dp")
    return cores // num_here
