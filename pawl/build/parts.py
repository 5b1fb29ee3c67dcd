"""What an engine is made of, and what making it has in common for every model. Loads nothing by itself."""

from __future__ import annotations

import os
import platform
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec
import structlog

from pawl import __version__
from pawl.actors.linker import Dialer
from pawl.actors.names import NAMES, Names
from pawl.actors.recorder import Recorder
from pawl.actors.storage import Storage
from pawl.actors.text.vocabulary import Vocabulary
from pawl.actors.weight_groups import LOCAL, Trainers
from pawl.build.lora import lora_settings
from pawl.build.ready import HERE, Home
from pawl.build.tiers import make_storage, remote_config, tier_config, wants_tiers
from pawl.config import ConfigError, ServerConfig, default_trace_dir
from pawl.gpu.grammars.cache import Grammars
from pawl.gpu.profiler import Profiler, Tracer
from pawl.gpu.step_runner import Abilities, StepRunner
from pawl.gpu.tracers import torch_tracer
from pawl.lifecycle.records import Started
from pawl.lifecycle.trace.writer import TraceWriter, file_bytes
from pawl.loops.select import LoopConfig, Role, cell_name
from pawl.loops.speculation import SpeculationConfig
from pawl.memory.prefix.select import Core, CoreUnavailable, choose_core, make_cache

CHECKPOINTS_PER_FILE = 4
"""Of a trace, at the least: one begins the next file, so what is left when old files are dropped can be replayed."""

SPECULATION = {"num_speculative_tokens": 7, "prompt_lookup_min": 3, "prompt_lookup_max": 5}
"""Settings of drafts, with what they are unless said."""

log = structlog.get_logger("pawl.build.parts")


def nothing() -> None:
    """There is nothing to do."""


class Source(Protocol):
    """Where a model comes from, for those who ask."""

    @property
    def name(self) -> str: ...

    @property
    def path(self) -> Path: ...


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything an engine is made of."""

    source: Source
    vocabulary: Vocabulary
    runner: StepRunner[Any]
    loop_config: LoopConfig
    recorder: Recorder | None = None
    trace_path: Path | None = None
    started: Started | None = None
    """First record of the trace."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Model, device, memory plan and loop cell, for the line that says what runs."""
    storage: Storage | None = None
    """Where pages go that leave the device, if anywhere."""
    grammars: Grammars | None = None
    """What the runner follows grammars with; None where there are none for the vocabulary."""
    profiler: Profiler | None = None
    """Of the worker; None: its own."""
    trainers: Trainers = field(default_factory=Trainers)
    dialer: Dialer | None = None
    """Links its process with those of other replicas, where these have to speak with each other."""
    close: Callable[[], None] = nothing
    """Called when the engine has stopped."""
    home: Home = HERE
    pid: int = field(default_factory=os.getpid)
    names: Names = NAMES
    """Of the actors, storage and recorder among them; those of one of several replicas are its own."""

    @property
    def abilities(self) -> Abilities:
        """What requests may want of the model."""
        return self.runner.abilities

    @property
    def traced(self) -> bool:
        """Whether a trace is written."""
        return self.recorder is not None


def check_settings(config: ServerConfig) -> None:
    """Before a model is loaded. Raises ConfigError where settings mean nothing together."""
    if config.trace_required and not config.trace:
        raise ConfigError("trace_required: there is none with trace off", "trace_required")
    try:
        make_cache(config.cache, config.page_size, eviction=config.eviction)
    except ValueError as error:
        raise ConfigError(f"eviction: {error}", "eviction") from error
    _core(config, config.cache)
    wants_tiers(config)
    _speculation(config)
    lora_settings(config)
    sized = config.kv_tokens is not None or config.kv_memory_gb is not None
    if config.memory_share is not None and (config.device != "cuda" or sized):
        raise ConfigError(
            "memory_share: is for a CUDA device, and for pages that neither kv_tokens nor kv_memory_gb size",
            "memory_share",
        )


def _core(config: ServerConfig, kind: str) -> Core:
    """The implementation of this kind of cache. Raises ConfigError where the one that was asked for is not there."""
    try:
        return choose_core(config.cache_core, kind)
    except (ValueError, CoreUnavailable) as error:
        raise ConfigError(f"cache_core: {error}", "cache_core") from error


def make_loop_config(
    config: ServerConfig,
    *,
    num_pages: int,
    max_position: int,
    prefill_chunk: int,
    weights: str,
    window: int | None = None,
    num_window_pages: int | None = None,
) -> LoopConfig:
    """How requests are scheduled, over the weights of this fingerprint. Tiers come later, when pages have a size.

    `max_position` is the most tokens the model can take, `prefill_chunk` those that a step takes; `window` and
    `num_window_pages` are given where windowed layers have a pool of their own. Raises ConfigError.
    """
    if prefill_chunk < config.page_size:
        # Chunks end where pages do: one that reaches no page's end would never be planned.
        raise ConfigError(
            f"prefill_chunk: at least page_size, which is {config.page_size}, not {prefill_chunk}", "prefill_chunk"
        )
    core = _core(config, "sliding" if window is not None and config.cache == "radix" else config.cache)
    if core.reason:
        log.info("the cache in plain Python", reason=core.reason)
    context = min(config.context_length or max_position, max_position)
    return LoopConfig(
        num_pages=num_pages,
        page_size=config.page_size,
        max_context=min(context, num_pages * config.page_size),
        max_running=config.max_running,
        max_queued=config.max_queued,
        prefill_chunk=prefill_chunk,
        max_step_s=None if config.max_step_ms is None else config.max_step_ms / 1000,
        window=window,
        num_window_pages=num_window_pages,
        # Overlap through several stages is a pipeline.
        pacing="pipeline" if config.pp > 1 and config.pacing == "overlap" else config.pacing,
        stages=config.pp,
        mixed=config.mixed,
        policy=config.policy,
        cache=config.cache,
        eviction=config.eviction,
        cache_core=core.name,
        weights=weights,
        speculation=_speculation(config),
        **lora_settings(config),
        weight_version=config.weight_version,
        checkpoint_bytes=file_bytes(config.trace_limit_mb << 20) // CHECKPOINTS_PER_FILE,
        # Drawn once, here: the trace holds it, so a run without a given seed can be replayed as well.
        seed=secrets.randbits(31) if config.seed is None else config.seed,
    )


def _speculation(config: ServerConfig) -> SpeculationConfig | None:
    """How tokens to come are drafted. Raises ConfigError where the settings do not go together."""
    given = {name: getattr(config, name) for name in SPECULATION if getattr(config, name) is not None}
    if config.speculate == "none":
        for name in given:
            raise ConfigError(f"{name}: nothing is drafted; say --speculate ngram as well", name)
        return None
    if config.device != "cpu" or config.backend == "torch":
        raise ConfigError(
            "speculate: only the compiled CPU kernels promise the same bits with drafts and without", "speculate"
        )
    made = SpeculationConfig(**SPECULATION | given)
    if made.prompt_lookup_min > made.prompt_lookup_max:
        least, most = made.prompt_lookup_min, made.prompt_lookup_max
        raise ConfigError(
            f"prompt_lookup_min: at most prompt_lookup_max, which is {most}, not {least}", "prompt_lookup_min"
        )
    return made


def assemble(
    config: ServerConfig,
    *,
    source: Source,
    vocabulary: Vocabulary,
    runner: StepRunner[Any],
    loop_config: LoopConfig,
    facts: dict[str, Any],
    began: float,
    grammars: Grammars | None = None,
    make_tracer: Callable[[], Tracer] = torch_tracer,
    close: Callable[[], None] = nothing,
    names: Names = NAMES,
) -> Parts:
    """Lower tiers, trace and summary around a loaded model. `facts` about it go into the last two; the summary also
    says how long it took since `began`, seconds of the monotonic clock. Raises ConfigError, or StorageUnusable."""
    storage = None
    if wants_tiers(config):
        storage = make_storage(config, runner.layout, runner.page_bytes, names)
        loop_config = msgspec.structs.replace(
            loop_config,
            tiers=tier_config(config, runner.layout, runner.page_bytes, names.role),
            role=Role(names.role),
            remote=remote_config(config, storage, names.role),
        )
    writer = _trace_writer(config)
    of_several = {"replica": names.replica} if names.routed else {}
    started = _started(config, source, loop_config, facts | _grammar_facts(grammars) | of_several)
    summary = {
        "model": source.name,
        **facts,
        "kv_tokens": loop_config.num_pages * loop_config.page_size,
        "context": loop_config.max_context,
        "cell": cell_name(loop_config),
        "load_s": round(time.monotonic() - began, 2),
    }
    if grammars is not None:
        summary["grammar_backend"] = grammars.name
    return Parts(
        source=source,
        vocabulary=vocabulary,
        runner=runner,
        loop_config=loop_config,
        recorder=Recorder(writer, started, names) if writer is not None else None,
        trace_path=writer.path if writer is not None else None,
        started=started,
        summary=summary,
        storage=storage,
        grammars=grammars,
        profiler=Profiler(make_tracer, Path(config.profile_dir), rank=names.replica),
        trainers=_trainers(config),
        close=close,
        names=names,
    )


def _trainers(config: ServerConfig) -> Trainers:
    others = [host.strip() for host in (config.trainer_hosts or "").split(",") if host.strip()]
    return Trainers((*LOCAL, *others), config.trainer_timeout_s)


def _trace_writer(config: ServerConfig) -> TraceWriter | None:
    """Where the trace goes; None without one, or where the folder that nobody chose cannot be written.

    Raises ConfigError where the folder was chosen, or a trace is required.
    """
    if not config.trace:
        return None
    try:
        return TraceWriter(Path(config.trace_dir), config.trace_limit_mb << 20)
    except OSError as error:
        problem = f"{config.trace_dir} cannot be written ({error.strerror or error})"
        if config.trace_required or config.trace_dir != default_trace_dir():
            raise ConfigError(f"trace_dir: {problem}; --no-trace serves without a trace", "trace_dir") from error
        log.warning("no trace is written", reason=problem, advice="name a folder with --trace-dir, or say --no-trace")
        return None


def _grammar_facts(grammars: Grammars | None) -> dict[str, Any]:
    """By which an audit knows what outputs with grammars were kept to."""
    return {} if grammars is None else {"grammar_backend": grammars.name, "vocabulary": grammars.words.fingerprint()}


def _started(config: ServerConfig, source: Source, loop_config: LoopConfig, facts: dict[str, Any]) -> Started:
    """The first record: `facts` say what computes, by which an audit knows what it may ask of the tokens."""
    about = {
        "loop": msgspec.to_builtins(loop_config),
        "model": config.model,
        "machine": platform.platform(),
        "pid": os.getpid(),
        **facts,
    }
    return Started(
        version=__version__,
        model=source.name,
        config=about,
        num_pages=loop_config.num_pages,
        page_size=loop_config.page_size,
        num_slots=loop_config.max_running,
        seed=loop_config.seed,
        time=time.monotonic(),
        wall=time.time(),
    )
