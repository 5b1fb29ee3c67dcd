"""From the settings to the hosts of an engine."""

from __future__ import annotations

from pathlib import Path

from pawl.actors.runtime.processes.keys import read_keys
from pawl.build.hosts.head import NodeHosts
from pawl.build.hosts.host import Hosts, OneHost
from pawl.build.hosts.layout import layout_of
from pawl.config import ServerConfig


def hosts_of(config: ServerConfig) -> Hosts:
    """Nodes may join from now on. Raises ConfigError, KeysUnusable, and OSError for an address that cannot be had."""
    layout = layout_of(config)
    if not layout.num_joined:
        return OneHost()
    assert config.keys is not None
    if config.ray is not None:
        from pawl.build.hosts.ray import RayHosts  # its library is read by nobody else

        return RayHosts(config, layout, read_keys(Path(config.keys)))
    assert config.listen is not None
    return NodeHosts(layout, config.listen, read_keys(Path(config.keys)), config.keys, config.node_timeout_s)
