"""From a configuration to ranks: one process each, with its part of the model, behind one runner."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from pawl.actors.codec import make_codec
from pawl.build.ranks_here import Begin, Outward, ranks_of_hosts, start_here
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.backend import BackendUnavailable
from pawl.gpu.devices import num_devices
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.switches import check_switches
from pawl.gpu.native.backend import NativeBackend
from pawl.gpu.native.bindings import load_library
from pawl.gpu.parallel.group import RankGroup
from pawl.gpu.parallel.group_experts import ExpertsOfModel, GroupExperts
from pawl.gpu.parallel.placement import even_placement
from pawl.gpu.parallel.processes import RankProcesses, SomeRanks
from pawl.gpu.parallel.ranks import Ranks
from pawl.gpu.parallel.sent import ShownWeights, expert_of
from pawl.gpu.parallel.shard import check_shares
from pawl.gpu.parallel.topology import Topology, TopologyRefused
from pawl.gpu.parallel.wire import FromRank, Ready, Setup, Sizes
from pawl.gpu.pooling import Pooling, abilities_of
from pawl.gpu.weights.report import Report, unheard

if TYPE_CHECKING:
    from pawl.build.outposts import Outposts

log = structlog.get_logger("pawl.build.ranks")


def topology_of(config: ServerConfig) -> Topology:
    """The ranks that were asked for: without `tp`, one for each part of the experts. Raises ConfigError."""
    if config.enable_eplb and config.ep == 1:
        raise ConfigError("enable_eplb: experts move between the parts of --ep, and there is one", "enable_eplb")
    if config.ep_num_redundant_experts and not config.enable_eplb:
        raise ConfigError("ep_num_redundant_experts: copies are made with --enable-eplb", "ep_num_redundant_experts")
    tensor = config.tp if config.tp > 1 else config.ep
    try:
        return Topology(tensor=tensor, pipeline=config.pp, expert=config.ep)
    except TopologyRefused as error:
        raise ConfigError(f"ep: {error}", "ep") from error


def check_ranks(config: ServerConfig, model: ModelConfig, topology: Topology, num_hosts: int) -> None:
    """Before anything is loaded. Raises ConfigError, with the numbers, where these ranks, of so many hosts, cannot
    serve the model."""
    name = ("tp" if config.tp > 1 else "ep") if topology.tensor > 1 else "pp"
    try:
        check_shares(model, topology)
    except TopologyRefused as error:
        asked = str(error).partition(" ")[0]
        raise ConfigError(f"{asked}: {error}", asked) from error
    if config.backend == "triton":
        raise ConfigError(f"{name}: triton does not share a model out among ranks; torch and native do", "backend")
    if config.weights != "auto":
        raise ConfigError(f"weights: with {name} those of each rank have the --dtype", "weights")
    ranks_here = len(ranks_of_hosts(topology, num_hosts)[0])
    if config.device == "cuda" and ranks_here > (count := num_devices()):
        raise ConfigError(f"{name}: {ranks_here} ranks, one on each device, and there are {count}", name)


def computed_by_kernels(config: ServerConfig, model: ModelConfig, deterministic: bool) -> bool:
    """Whether ranks compute by the compiled CPU kernels, which gather, or in plain torch, where they add up. Raises
    ConfigError where what was asked for cannot be."""
    try:
        if config.backend == "torch" or config.device != "cpu":
            raise BackendUnavailable("native", f"ranks compute in plain torch on {config.device}")
        check_switches("native", model, NativeBackend.switches)
        load_library()
    except BackendUnavailable as error:
        if config.backend == "native":
            raise ConfigError(f"backend: {error}", "backend") from error
        if deterministic:
            setting = "deterministic" if config.deterministic else "speculate"
            reason = "ranks add up in plain torch, whose sums depend on the batch and on the number of ranks"
            raise ConfigError(f"{setting}: {reason} ({error})", setting) from error
        log.info("ranks compute in plain torch", reason=error.reason)
        return False
    return True


def start_group(
    config: ServerConfig,
    model: ModelConfig,
    path: Path,
    sizes: Sizes,
    topology: Topology,
    pooling: Pooling | None,
    deterministic: bool,
    report: Report,
    outposts: Outposts | None,
) -> RankGroup:
    """The ranks, ready, of this host and of those with `outposts`; `report` hears how far the first of their starts is.
    Raises ConfigError, RankLost, or StartRefused."""
    by_kernels, lives = computed_by_kernels(config, model, deterministic), itertools.count()
    experts = _experts_of(config, model, topology)
    shares = ranks_of_hosts(topology, 1 if outposts is None else outposts.num_hosts)
    # Keys of clients are the front's business.
    settings = msgspec.structs.replace(config, api_key=None, admin_api_key=None)

    def start(place: str) -> Ranks:
        life = next(lives)

        def setup(rank: int) -> Setup:
            return Setup(
                rank=rank,
                topology=topology,
                settings=msgspec.json.encode(settings).decode(),
                model=place,
                name=config.model if place == str(path) else place,
                sizes=sizes,
                deterministic=deterministic,
                by_kernels=by_kernels,
                placement=() if experts is None else experts.placement,
            )

        begins = [Begin(life, topology, numbers, by_kernels and topology.tensor > 1) for numbers in shares]
        outward = Outward() if outposts is None else outposts.outward
        hosts: list[Callable[[], SomeRanks]] = [partial(start_here, begins[0], config, outward)]
        if outposts is not None:
            hosts += [partial(outposts.start, number, begin) for number, begin in enumerate(begins[1:], 1)]
        wire = partial(make_codec, FromRank)
        return RankProcesses(topology, hosts, setup, wire, config.rank_timeout_s, unheard if life else report)

    return RankGroup(
        start,
        str(path),
        step_limit_s=config.rank_timeout_s,
        abilities=abilities_of(pooling, model.hidden_size),
        experts=experts,
        show=partial(ShownWeights, model, topology, by_kernels),
    )


def _experts_of(config: ServerConfig, model: ModelConfig, topology: Topology) -> GroupExperts | None:
    experts, parts = model.experts, topology.expert
    if experts is None:
        return None
    return GroupExperts(
        ExpertsOfModel(
            chosen=experts.chosen,
            layers=experts.layers,
            count=experts.count,
            placement=even_placement(model, parts),
            parts=parts,
            balances=config.enable_eplb,
            every=config.eplb_rebalance_num_iterations if config.enable_eplb else 0,
            redundant=config.ep_num_redundant_experts,
        ),
        expert_of,
    )


def _told(ready: Ready) -> dict[str, Any]:
    """What a rank has, for people."""
    told: dict[str, Any] = msgspec.to_builtins(ready)
    names = ("rank", "stage", "tensor", "pid", "host", "device", "max_tokens", "kv_bytes", "shard")
    return {name: told[name] for name in names}


def facts_of(group: RankGroup, architecture: str) -> dict[str, Any]:
    """What the line that says what runs, and the trace, tell about the model and its ranks."""
    first = group.ready[0]
    return {
        "architecture": architecture,
        "device": first.device,
        "backend": first.backend,
        "processor": first.processor,
        "dtype": first.dtype,
        "ranks": [_told(one) for one in group.ready],
        "kv_mib": sum(one.kv_bytes for one in group.ready) >> 20,
    }
