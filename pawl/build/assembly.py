"""From a configuration to the parts of an engine with a real model: weights, vocabulary, runner, memory plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import structlog

from pawl.actors.names import NAMES, Names
from pawl.actors.text.vocabulary import Vocabulary
from pawl.build.grammars import make_grammars
from pawl.build.lora import targets_of
from pawl.build.parts import Parts, assemble, check_settings, make_loop_config
from pawl.build.ranks import check_ranks, facts_of, start_group, topology_of
from pawl.build.roles import num_places
from pawl.build.sizing import check_weights, settle_pages
from pawl.build.tiers import wants_tiers
from pawl.config import ConfigError, ServerConfig
from pawl.gpu.adapters.peft import MOST_RANK, AdapterLimits, read_adapter
from pawl.gpu.alone import check_scores
from pawl.gpu.devices import available_memory, num_devices
from pawl.gpu.dtypes import DTYPES, name_of
from pawl.gpu.encoder.config import is_encoder
from pawl.gpu.kv import MemoryPlan, hybrid, plan_memory, plan_tokens, widest_window
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.native.build import has_tiles
from pawl.gpu.parallel.shard import Shard
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.parallel.wire import Sizes
from pawl.gpu.pooling import Pooling
from pawl.gpu.runner import Runner
from pawl.gpu.select import blocks_refused, processor_of
from pawl.gpu.weights.blocks import Weights
from pawl.gpu.weights.fingerprint import weights_fingerprint
from pawl.gpu.weights.pooling import folder_pooling
from pawl.gpu.weights.report import Report, part, unheard
from pawl.gpu.weights.source import ModelSource, find_model, load_blocks, load_weights, source_at
from pawl.loops.select import LoopConfig

if TYPE_CHECKING:
    from pawl.build.outposts import Outposts

log = structlog.get_logger("pawl.build.assembly")

DEFAULT_CHUNK = {"cpu": 128, "cuda": 8192}
"""Prompt tokens in one step: enough to keep the device busy, few enough that running requests do not wait long. On a
CPU a token of a prompt costs as much in a chunk of 128 as in one of 512, and a fifth more in one of 64."""
CHUNK_WITH_TILES = 512
"""The same of a CPU with tile registers, for which reading the weights would be half the time of 128 tokens."""
KV_SHARE = {"cpu": 0.25, "cuda": 1.0}
"""Of the memory that is free now; on a CUDA device an upper bound, until `settle_pages` has measured."""
WEIGHTS_LOADED = 0.8
"""Share of the way to a running engine; importing PyTorch is the tenth before it, kernels and pages are the rest."""
STORED = "stored"
CPU_KV_LIMIT = 1 << 30
"""Bytes; a CPU server rarely needs more, and its memory is shared with everything else on the machine."""


def load_parts(
    config: ServerConfig, report: Report = unheard, names: Names = NAMES, outposts: Outposts | None = None
) -> Parts:
    """Load the model named by the configuration; `report` hears how far it is. With `outposts` ranks live there too.

    Raises ModelNotFound, UnsupportedModel, UnsupportedVocabulary, BackendUnavailable, KvDoesNotFit, WeightsDoNotFit,
    ModelDoesNotFit, NoScores, ConfigError, of ranks RankLost, StartRefused or HostGone, each with a message for people.
    """
    began = time.monotonic()
    check_settings(config)
    _check_deterministic(config)
    topology = topology_of(config)
    path, name = find_model(config.model)
    if is_encoder(path):
        from pawl.build.encoder import load_encoder

        if topology.size > 1:
            name = "pp" if config.pp > 1 else "tp"
            raise ConfigError(f"{name}: an encoder is not shared out among ranks", name)
        return load_encoder(config, path, name, report, names)
    if config.device == "cuda" and not num_devices():
        raise ConfigError("device: cuda, and there is no CUDA device here", "device")
    if topology.size > 1:
        return _load_ranks(config, source_at(path, name), topology, began, report, names, outposts)
    return _load_decoder(config, source_at(path, name), began, report, names)


def _load_decoder(config: ServerConfig, source: ModelSource, began: float, report: Report, names: Names) -> Parts:
    """The parts of an engine with this decoder."""
    two_pools = _two_pools(config, source.config)
    pooling = pooling_of(config, source.path)
    dtype, stored = _dtype(config), _stored(config, source)
    vocabulary = Vocabulary.load(source.path, source.config.vocab_size)
    grammars = make_grammars(config.grammar_backend, vocabulary, eager=True)
    load: Callable[..., Weights] = load_blocks if stored else load_weights
    weights = load(source, dtype, part(report, 0.1, WEIGHTS_LOADED))
    source = replace(source, file=None)  # nothing of a model's file stays mapped
    report(WEIGHTS_LOADED)
    plan = _plan(config, source.config, dtype, two_pools)
    loop_config = make_loop_config(
        config,
        num_pages=plan.num_pages,
        max_position=source.config.max_position,
        prefill_chunk=_prefill_chunk(config),
        weights=weights_fingerprint(source.config, weights),
        window=widest_window(source.config) if two_pools else None,
        num_window_pages=plan.num_window_pages,
    )
    on_device = config.device == "cuda"
    if on_device:
        check_weights(sum(weight.nbytes for weight in weights.values()), config.device)
    limits = AdapterLimits(min(config.max_lora_rank or MOST_RANK, MOST_RANK), targets_of(config))
    runner = Runner(
        source.config,
        weights,
        # On a device pages come when it is known what everything else takes.
        num_pages=1 if on_device else plan.num_pages,
        page_size=plan.page_size,
        num_slots=loop_config.max_running,
        max_context=loop_config.max_context,
        device=config.device,
        dtype=dtype,
        threads=config.threads,
        backend=config.backend,
        num_window_pages=1 if on_device and plan.num_window_pages is not None else plan.num_window_pages,
        # Drafts change nothing only where a row's bits do not depend on what is beside it.
        deterministic=config.deterministic or loop_config.speculation is not None,
        grammars=grammars,
        pooling=pooling,
        adapters=partial(read_adapter, limits=limits),
    )
    if on_device:
        asked = plan if _sized(config) else None
        plan = settle_pages(config, runner, loop_config, asked)
        loop_config = _with_pages(loop_config, plan)
    check_scores(runner, source.path, vocabulary.num_embeddings, plan.page_size, windows=two_pools)
    return assemble(
        config,
        source=source,
        vocabulary=vocabulary,
        grammars=grammars,
        runner=runner,
        loop_config=loop_config,
        facts=_facts(config, runner, plan, stored),
        began=began,
        names=names,
    )


def _load_ranks(
    config: ServerConfig,
    source: ModelSource,
    topology: Topology,
    began: float,
    report: Report,
    names: Names,
    outposts: Outposts | None,
) -> Parts:
    """The parts of an engine whose decoder is shared out among ranks: this process has none of its weights."""
    from pawl.gpu.parallel.tracer import RankTracer

    model = source.config
    check_ranks(config, model, topology, 1 if outposts is None else outposts.num_hosts)
    stages = [Shard(model, topology, 0, stage=stage).config for stage in range(topology.pipeline)]
    two_pools, pooling = _two_pools(config, *stages), pooling_of(config, source.path)
    vocabulary = Vocabulary.load(source.path, model.vocab_size)
    grammars = make_grammars(config.grammar_backend, vocabulary, eager=True)
    # The first rank has the most layers and heads, and so the largest pages.
    plan = _plan(config, stages[0], _dtype(config), two_pools, ranks=topology.size)
    loop_config = make_loop_config(
        config,
        num_pages=plan.num_pages,
        max_position=model.max_position,
        prefill_chunk=_prefill_chunk(config),
        weights="",
        window=widest_window(model) if two_pools else None,
        num_window_pages=plan.num_window_pages,
    )
    # Drafts change nothing only where a row's bits do not depend on what is beside it.
    deterministic = config.deterministic or loop_config.speculation is not None
    if source.has_blocks and config.dtype == "auto":
        log.info("weights are dequantised", reason="ranks compute none as they are stored")
    facts = {"weights": _dtype_name(config), "deterministic": config.deterministic}
    sizes, heard = _sizes(plan, loop_config), part(report, 0.1, WEIGHTS_LOADED)
    group = start_group(config, model, source.path, sizes, topology, pooling, deterministic, heard, outposts)
    report(WEIGHTS_LOADED)
    try:
        return assemble(
            config,
            source=source,
            vocabulary=vocabulary,
            grammars=grammars,
            runner=group,
            loop_config=msgspec.structs.replace(loop_config, weights=group.fingerprint),
            facts=facts | facts_of(group, model.architecture),
            began=began,
            make_tracer=RankTracer,
            close=group.close,
            names=names,
        )
    except BaseException:
        group.close()
        raise


def _sizes(plan: MemoryPlan, loop_config: LoopConfig) -> Sizes:
    """Of the tables of each rank's runner."""
    return Sizes(
        num_pages=plan.num_pages,
        num_window_pages=plan.num_window_pages,
        page_size=plan.page_size,
        num_slots=loop_config.max_running,
        max_context=loop_config.max_context,
    )


def _facts(config: ServerConfig, runner: Runner, plan: MemoryPlan, stored: bool) -> dict[str, Any]:
    """What the line that says what runs, and the trace, tell about the model and its memory."""
    facts: dict[str, Any] = {
        "architecture": runner.config.architecture,
        "device": config.device,
        "backend": runner.backend.name,
        "processor": processor_of(runner.backend),
        "dtype": name_of(_dtype(config)),
        "weights": STORED if stored else _dtype_name(config),
        "deterministic": config.deterministic,
        "kv_mib": plan.num_bytes >> 20,
    }
    if runner.pooler.pooling is not None:
        facts["pooling"] = msgspec.to_builtins(runner.pooler.pooling)
    if plan.num_window_pages is not None:
        facts["window_tokens"] = plan.num_window_pages * plan.page_size
    return facts


def pooling_of(config: ServerConfig, path: Path) -> Pooling | None:
    """How vectors are made: as the user says, else as the model's folder does. None: there are none. Raises ConfigError
    where a decoder cannot make them so."""
    said = folder_pooling(path)
    if config.pooling == "off" or (said is None and config.pooling == "auto"):
        return None
    pooling = said or Pooling("last", normalised=True)
    if config.pooling not in ("auto", "on"):
        pooling = msgspec.structs.replace(pooling, kind=config.pooling)
    if pooling.kind == "cls":
        raise ConfigError("pooling: cls is for encoders; the first position of this model sees nothing else", "pooling")
    return pooling


def _dtype_name(config: ServerConfig) -> str:
    named = {name for name in (config.weights, config.dtype) if name not in ("auto", STORED)}
    if len(named) > 1:
        raise ConfigError(f"weights: {config.weights} do not go with dtype {config.dtype}", "weights")
    return named.pop() if named else "bf16"


def _dtype(config: ServerConfig) -> np.dtype[Any]:
    """Of keys, values and activations, and of weights that are not stored otherwise. Raises ConfigError."""
    return DTYPES[_dtype_name(config)]


def _stored(config: ServerConfig, source: ModelSource) -> bool:
    """Whether matrices stay as the model's file has them. Raises ConfigError where they were to and cannot."""
    if config.weights not in ("auto", STORED) or (config.weights == "auto" and config.dtype != "auto"):
        return False
    reason = "most are in no format that is computed so"
    if source.has_blocks:
        reason = blocks_refused(config.backend, source.config, config.device)
    if reason and config.weights == STORED:
        raise ConfigError(f"weights: those of {config.model} cannot stay as they are stored: {reason}", "weights")
    return not reason


def _sized(config: ServerConfig) -> bool:
    """Whether the user has said how many pages there are."""
    return config.kv_tokens is not None or config.kv_memory_gb is not None


def _with_pages(loop_config: LoopConfig, plan: MemoryPlan) -> LoopConfig:
    """`loop_config` over the pages of `plan`."""
    return msgspec.structs.replace(
        loop_config,
        num_pages=plan.num_pages,
        num_window_pages=plan.num_window_pages,
        max_context=min(loop_config.max_context, plan.num_tokens),
    )


def _check_deterministic(config: ServerConfig) -> None:
    """Raises ConfigError, before anything is loaded, where the promise could not be kept."""
    if config.deterministic and config.backend == "torch":
        raise ConfigError(
            "deterministic: the sums of torch depend on the batch; those of native (CPU) and triton (CUDA) do not",
            "backend",
        )


def _two_pools(config: ServerConfig, *stages: ModelConfig) -> bool:
    """Whether layers with a window get pages of their own, in every stage. Raises ConfigError where they were asked for
    and cannot."""
    possible = all(map(hybrid, stages)) and len(set(map(widest_window, stages))) == 1
    wanted, tiers = config.hybrid_pools, wants_tiers(config)
    if wanted == "on" and not possible:
        what = "the model" if len(stages) == 1 else "each stage of the model"
        raise ConfigError(
            f"hybrid_pools: {what} must have layers with a window and layers without; this one has not",
            "hybrid_pools",
        )
    if wanted == "on" and tiers:
        raise ConfigError(
            "hybrid_pools: host_cache_gb and storage_dir keep no window pages, so they go with one pool only",
            "hybrid_pools",
        )
    if wanted == "auto" and possible and tiers:
        log.info("one pool for all layers", reason="host_cache_gb and storage_dir keep no window pages")
    return wanted != "off" and possible and not tiers


def _prefill_chunk(config: ServerConfig) -> int:
    """Prompt tokens in one step."""
    if config.prefill_chunk is None and config.device == "cpu" and has_tiles():
        return CHUNK_WITH_TILES
    return config.prefill_chunk or DEFAULT_CHUNK[config.device]


def _plan(
    config: ServerConfig, model: ModelConfig, dtype: np.dtype[Any], two_pools: bool, *, ranks: int = 1
) -> MemoryPlan:
    """Pages for the KV cache, of each rank: what the user named, or a share of what is free. On a CUDA device the
    latter is an upper bound: weights are not there yet."""
    chunk = _prefill_chunk(config) if two_pools else None
    if config.kv_tokens is not None:
        return plan_tokens(model, dtype, config.page_size, config.kv_tokens, chunk=chunk)
    if config.kv_memory_gb is not None:
        budget = int(config.kv_memory_gb * (1 << 30))
    else:
        budget = int(available_memory(config.device) * KV_SHARE[config.device])
        if config.device == "cpu":
            budget = min(budget, CPU_KV_LIMIT) // ranks
        budget //= num_places(config)
    return plan_memory(model, dtype, config.page_size, budget, chunk=chunk)
