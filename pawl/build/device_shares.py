"""Which CUDA devices a replica has: those of a host are shared out among its replicas, one for each rank."""

from __future__ import annotations

import os

from pawl.build.hosts.layout import layout_of
from pawl.config import ConfigError, ServerConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"


def devices_of(given: str | None, first: int, count: int) -> str:
    """The value of CUDA_VISIBLE_DEVICES by which a process sees `count` devices alone, those behind the `first` ones of
    what its parent sees: all (None), or those that `given` names. It has fewer where there are fewer."""
    if given is None:
        return ",".join(map(str, range(first, first + count)))
    return ",".join([name.strip() for name in given.split(",") if name.strip()][first : first + count])


def take_devices(config: ServerConfig, place: int, part: int = 0) -> None:
    """Have this process see the devices of the replica at this place, as 0, 1, …: nothing has looked for any so far.
    Where its ranks are on several hosts, those of the host of this number among them. Raises ConfigError, with the
    numbers, where there are too few."""
    if config.device == "cpu":
        return
    from pawl.build.ranks import topology_of
    from pawl.build.ranks_here import ranks_of_hosts
    from pawl.gpu.devices import num_devices

    layout = layout_of(config)
    each, block = len(ranks_of_hosts(topology_of(config), layout.hosts_each)[part]), layout.block_of(place)
    first = (place - block.first) * each
    os.environ[VISIBLE] = devices_of(os.environ.get(VISIBLE), first, each)
    if num_devices() < each:
        which = f"device {first}" if each == 1 else f"devices {first} to {first + each - 1}"
        wanted = f"replica {place - block.first + 1} of {block.size} on this host is for CUDA {which}"
        raise ConfigError(f"device: {wanted}, and {num_devices()} of {each} are there", "device")
