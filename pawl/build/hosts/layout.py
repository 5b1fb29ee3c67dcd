"""Which replicas live on which host, as the settings say. Each has a place, and there are as many as there may be."""

from __future__ import annotations

import os
from typing import NamedTuple

from pawl.build.hosts.addresses import host_and_port
from pawl.config import ConfigError, ServerConfig

NO_KEYS = "keys: links between hosts go with keys only: --keys DIR, the same on each host, which `pawl keys DIR` makes"


class Layout(NamedTuple):
    """Replicas side by side, as many on each host."""

    num_nodes: int
    """With that of the head, where replicas live there."""
    num_here: int
    """Replicas on each."""
    head_serves: bool
    """Node 0 is the host of the head."""

    @property
    def num_joined(self) -> int:
        """Nodes that are to join."""
        return self.num_nodes - self.head_serves

    def node_of(self, place: int) -> int:
        """The node, from 0, of the replica at this place."""
        return place // self.num_here

    @property
    def places(self) -> list[int]:
        """In the order in which they are taken, as far as not all are: first one on each node."""
        return sorted(range(self.num_nodes * self.num_here), key=lambda place: divmod(place, self.num_here)[::-1])


def layout_of(config: ServerConfig, num_replicas: int) -> Layout:
    """Raises ConfigError for one that cannot be."""
    if config.ray is not None:
        return _layout_of_ray(config, num_replicas)
    num_nodes, most = config.nodes, "dp" if config.max_dp is None else "max_dp"
    if num_replicas % num_nodes:
        ranks = "; ranks of a replica live on one host, where they meet in memory" if num_replicas < num_nodes else ""
        raise ConfigError(
            f"nodes: each of {num_nodes} nodes has as many replicas, and {most} is {num_replicas}{ranks}", "nodes"
        )
    if config.max_dp is not None and config.dp < num_nodes:
        raise ConfigError(f"dp: at least one replica for each of {num_nodes} nodes, not {config.dp}", "dp")
    layout = Layout(num_nodes, num_replicas // num_nodes, config.head_serves)
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


def threads_of(config: ServerConfig, num_here: int) -> int | None:
    """Threads of each of so many replicas on this host; None: as one alone has. Raises ConfigError."""
    if num_here == 1 or config.model == "ghost":
        return config.threads
    cores = config.threads or len(os.sched_getaffinity(0))
    if cores < num_here:
        raise ConfigError(f"dp: {num_here} replicas need a thread each, and there are {cores}", "dp")
    return cores // num_here
