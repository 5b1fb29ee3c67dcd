"""From a configuration to loaded parts: model, vocabulary, runner, memory plan, trace. No actor runs here."""

from __future__ import annotations

import os
import platform
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch

from actors.recorder import Recorder
from actors.storage import Storage
from actors.text.vocabulary import Vocabulary
from gpu.devices import available_memory
from gpu.kv import MemoryPlan, kv_bytes_per_token, plan_memory
from gpu.models.config import ModelConfig
from gpu.runner import Runner
from gpu.weights.fingerprint import weights_fingerprint
from gpu.weights.source import ModelSource, load_weights, resolve_source
from lifecycle.records import Started
from lifecycle.trace import TraceWriter
from loops.select import LoopConfig, cell_name
from memory.prefix.select import make_cache
from pawl import __version__
from pawl.config import ConfigError, ServerConfig
from pawl.tiers import make_storage, tier_config, wants_tiers

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DEFAULT_CHUNK = {"cpu": 512, "cuda": 8192}
"""Prompt tokens in one step: enough to keep the device busy, few enough that running requests do not wait long."""
KV_SHARE = {"cpu": 0.25, "cuda": 0.9}
"""Of the memory that is free once the weights are loaded."""
CPU_KV_LIMIT = 1 << 30
"""Bytes; a CPU server rarely needs more, and its memory is shared with everything else on the machine."""


@dataclass(frozen=True)
class Parts:
    """Everything an engine is made of."""

    source: ModelSource
    model: ModelConfig
    vocabulary: Vocabulary
    runner: Runner
    loop_config: LoopConfig
    plan: MemoryPlan
    recorder: Recorder | None
    trace_path: Path | None
    started: Started | None
    """First record of the trace."""
    summary: dict[str, Any]
    """Model, device, memory plan and loop cell, for the line that says what runs."""
    storage: Storage | None = None
    """Where pages go that leave the device, if anywhere."""


def load_parts(config: ServerConfig) -> Parts:
    """Load the model named by the configuration.

    Raises ModelNotFound, UnsupportedModel, UnsupportedVocabulary, BackendUnavailable or KvDoesNotFit, each with a
    message for the user.
    """
    began = time.monotonic()
    _check_cache(config)
    tiers = wants_tiers(config)
    source = resolve_source(config.model)
    device = config.device
    dtype = DTYPES["bf16" if config.dtype == "auto" else config.dtype]
    vocabulary = Vocabulary.load(source.path, source.config.vocab_size)
    weights = load_weights(source, dtype)
    plan = _plan(config, source.config, dtype)
    loop_config = _loop_config(config, source.config, plan, weights_fingerprint(source.config, weights))
    runner = Runner(
        source.config,
        weights,
        num_pages=plan.num_pages,
        page_size=plan.page_size,
        num_slots=loop_config.max_running,
        max_context=loop_config.max_context,
        device=device,
        dtype=dtype,
        threads=config.threads,
        backend=config.backend,
    )
    storage = None
    if tiers:
        storage = make_storage(config, runner.layout, runner.page_bytes)
        loop_config = msgspec.structs.replace(loop_config, tiers=tier_config(config, runner.layout, runner.page_bytes))
    started = _started(config, source, loop_config)
    writer = TraceWriter(Path(config.trace_dir), config.trace_limit_mb << 20) if config.trace else None
    summary = {
        "model": source.name,
        "architecture": source.config.architecture,
        "device": device,
        "backend": runner.backend_name,
        "dtype": str(dtype).removeprefix("torch."),
        "kv_tokens": plan.num_tokens,
        "kv_mib": plan.num_bytes >> 20,
        "context": loop_config.max_context,
        "cell": cell_name(loop_config),
        "load_s": round(time.monotonic() - began, 2),
    }
    return Parts(
        source=source,
        model=source.config,
        vocabulary=vocabulary,
        runner=runner,
        loop_config=loop_config,
        plan=plan,
        recorder=Recorder(writer) if writer is not None else None,
        trace_path=writer.path if writer is not None else None,
        started=started,
        summary=summary,
        storage=storage,
    )


def _check_cache(config: ServerConfig) -> None:
    """Before a model is loaded. Raises ConfigError where the options of the cache mean nothing together."""
    try:
        make_cache(config.cache, config.page_size, eviction=config.eviction)
    except ValueError as error:
        raise ConfigError(f"eviction: {error}", "eviction") from error


def _loop_config(config: ServerConfig, model: ModelConfig, plan: MemoryPlan, weights: str) -> LoopConfig:
    """How requests are scheduled, over the weights of this fingerprint. Tiers come later, when pages have a size."""
    context = min(config.context_length or model.max_position, model.max_position)
    return LoopConfig(
        num_pages=plan.num_pages,
        page_size=config.page_size,
        max_context=min(context, plan.num_tokens),
        max_running=config.max_running,
        max_queued=config.max_queued,
        prefill_chunk=config.prefill_chunk or DEFAULT_CHUNK[config.device],
        pacing=config.pacing,
        mixed=config.mixed,
        policy=config.policy,
        cache=config.cache,
        eviction=config.eviction,
        weights=weights,
        # Drawn once, here: the trace holds it, so a run without a given seed can be replayed as well.
        seed=secrets.randbits(31) if config.seed is None else config.seed,
    )


def _plan(config: ServerConfig, model: ModelConfig, dtype: torch.dtype) -> MemoryPlan:
    """Pages for the KV cache: what the user named, or a share of what is free."""
    if config.kv_tokens is not None:
        page_bytes = kv_bytes_per_token(model, dtype) * config.page_size
        return MemoryPlan(max(1, config.kv_tokens // config.page_size), config.page_size, page_bytes)
    if config.kv_memory_gb is not None:
        budget = int(config.kv_memory_gb * (1 << 30))
    else:
        budget = int(available_memory(config.device) * KV_SHARE[config.device])
        if config.device == "cpu":
            budget = min(budget, CPU_KV_LIMIT)
    return plan_memory(model, dtype, config.page_size, budget)


def _started(config: ServerConfig, source: ModelSource, loop_config: LoopConfig) -> Started:
    facts: dict[str, Any] = {
        "loop": msgspec.to_builtins(loop_config),
        "device": config.device,
        "dtype": config.dtype,
        "machine": platform.platform(),
        "pid": os.getpid(),
    }
    return Started(
        version=__version__,
        model=source.name,
        config=facts,
        num_pages=loop_config.num_pages,
        page_size=loop_config.page_size,
        num_slots=loop_config.max_running,
        seed=loop_config.seed,
        time=time.monotonic(),
        wall=time.time(),
    )
