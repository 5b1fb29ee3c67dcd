"""From the settings to what an engine is made of: parts in this process, or a replica in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pawl.actors.names import NAMES, Names, names_of
from pawl.build.parts import Parts
from pawl.build.replicas import places_of, share_of
from pawl.build.roles import as_set, num_places, roles_of
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.children import remove_left
from pawl.gpu.weights.locate import locate
from pawl.gpu.weights.report import Report, part, unheard

if TYPE_CHECKING:
    from pawl.build.outposts import Outposts
    from pawl.build.replica_process import ReplicaProcess


def load(config: ServerConfig, report: Report = unheard) -> list[Parts] | list[ReplicaProcess]:
    """The replicas that the settings name, here or in processes of their own; `report` hears how far it is."""
    roles = roles_of(config)
    shares = {place: share_of(config, place) for place in places_of(config)[: len(roles)]}
    if config.in_processes:
        from pawl.build.hosts.select import hosts_of  # whoever runs in one process imports no ZeroMQ
        from pawl.build.replica_process import started

        hosts = hosts_of(config)
        try:
            return started(shares, roles, hosts, report)
        except BaseException:
            hosts.close()
            raise
    if num_places(config) == 1:
        return [load_here(config, report)]
    return _several_here(list(shares.values()), roles, report)


def _several_here(shares: Sequence[ServerConfig], roles: Sequence[str], report: Report) -> list[Parts]:
    made: dict[int, Parts] = {}
    try:
        # More ranks than there can be are refused before others were started.
        for place in sorted(range(len(shares)), key=lambda place: -shares[place].tp):
            done, names = len(made), names_of(place, roles[place])
            made[place] = load_here(shares[place], part(report, done / len(shares), (done + 1) / len(shares)), names)
        layouts = {parts.loop_config.tiers.layout for parts in made.values() if parts.loop_config.tiers is not None}
        if len(layouts) > 1:
            raise ConfigError(f"disaggregate: pages of one side are none of the other: {', '.join(sorted(layouts))}")
    except BaseException:
        for parts in made.values():
            parts.close()
        raise
    return [made[place] for place in range(len(shares))]


def load_here(
    config: ServerConfig, report: Report = unheard, names: Names = NAMES, outposts: Outposts | None = None
) -> Parts:
    """The parts of an engine in this process, with ranks on those hosts too that have `outposts`. Imported only now,
    each with what it needs: a ghost starts without PyTorch, and a name that cannot be is refused (ModelNotFound) before
    PyTorch is there."""
    report(0.0)
    remove_left()
    try:
        if config.model == "ghost":
            from pawl.build.ghost import load_ghost

            return load_ghost(config, names)
        locate(config.model)
        from pawl.build.assembly import load_parts

        report(0.1)
        return load_parts(config, report, names, outposts)
    except ConfigError as error:
        raise as_set(error, config, names.role) from error
