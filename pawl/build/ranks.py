"""From a configuration to ranks: one process each, with its part of the model, behind one runner."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import torch

from pawl.actors.codec import make_codec
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.devices import available_threads
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.parallel.group import CountedModel, RankGroup
from pawl.gpu.parallel.processes import RankProcesses, python
from pawl.gpu.parallel.ranks import Ranks
from pawl.gpu.parallel.sent import ShownWeights
from pawl.gpu.parallel.shard import check_shares
from pawl.gpu.parallel.topology import Topology, TopologyRefused
from pawl.gpu.parallel.wire import FromRank, Setup, Sizes
from pawl.gpu.pooling import Pooling, abilities_of
from pawl.gpu.profiler import ProfileRefused, Tracer

log = structlog.get_logger("pawl.build.ranks")

SHARING_BACKENDS = ("auto", "torch")
"""That compute a rank's part of a model."""


def topology_of(config: ServerConfig) -> Topology:
    """The ranks that were asked for: without `tp`, one for each part of the experts. Raises ConfigError."""
    tensor = config.tp if config.tp > 1 else config.ep
    try:
        return Topology(tensor=tensor, pipeline=config.pp, expert=config.ep)
    except TopologyRefused as error:
        raise ConfigError(f"ep: {error}", "ep") from error


def check_ranks(config: ServerConfig, model: ModelConfig, topology: Topology) -> None:
    """Before anything is loaded. Raises ConfigError, with the numbers, where these ranks cannot serve the model."""
    adds_up = topology.tensor > 1
    name = ("tp" if config.tp > 1 else "ep") if adds_up else "pp"
    try:
        check_shares(model, topology)
    except TopologyRefused as error:
        asked = str(error).partition(" ")[0]
        raise ConfigError(f"{asked}: {error}", asked) from error
    if config.backend not in SHARING_BACKENDS and (adds_up or config.backend != "native"):
        raise ConfigError(f"{name}: {config.backend} does not share a model out among ranks; torch does", "backend")
    for setting, off in (("deterministic", False), ("speculate", "none")):
        if adds_up and getattr(config, setting) != off:
            reason = "ranks add up in plain torch, whose sums depend on the batch and on the number of ranks"
            raise ConfigError(f"{setting}: {reason}", setting)
    if config.device == "cuda" and topology.size > torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"{name}: {topology.size} ranks, one on each device, and there are {count}", name)


def start_group(
    config: ServerConfig, model: ModelConfig, path: Path, sizes: Sizes, topology: Topology, pooling: Pooling | None
) -> RankGroup:
    """The ranks, ready. Raises RankLost, or StartRefused."""
    threads = max(1, (config.threads or available_threads()) // topology.size)

    def start(place: str) -> Ranks:
        def setup(rank: int, store: Path) -> Setup:
            return Setup(
                rank=rank,
                topology=topology,
                store=str(store),
                settings=msgspec.json.encode(config).decode(),
                model=place,
                sizes=sizes,
                threads=threads,
            )

        wire = partial(make_codec, FromRank)
        return RankProcesses(topology, python("pawl.build.rank"), setup, wire, config.rank_timeout_s)

    experts = model.experts
    group = RankGroup(
        start,
        str(path),
        step_limit_s=config.rank_timeout_s,
        abilities=abilities_of(pooling, model.hidden_size),
        counted=None if experts is None else CountedModel(experts.chosen, experts.layers),
        show=partial(ShownWeights, model, topology),
    )
    log.info("ranks are ready", ranks=[msgspec.to_builtins(one) for one in group.ready])
    return group


def no_tracer() -> Tracer:
    """Profiles are those of one process. Raises ProfileRefused."""
    raise ProfileRefused("ranks are processes of their own, and a profile is of one: serve without tp, pp and ep")


def facts_of(group: RankGroup, architecture: str) -> dict[str, Any]:
    """What the line that says what runs, and the trace, tell about the model and its ranks."""
    first = group.ready[0]
    return {
        "architecture": architecture,
        "device": first.device,
        "backend": first.backend,
        "processor": first.processor,
        "dtype": first.dtype,
        "ranks": len(group.ready),
        "kv_mib": sum(one.kv_bytes for one in group.ready) >> 20,
    }
