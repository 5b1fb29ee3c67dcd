"""Everything a server can be told, in one Struct. Flags, help, the file format and the checks are made from it.

A value comes from the command line, else from the YAML file, else from the default written here. Nothing is read from
the environment but two folders: `PAWL_CACHE`, for what can be made again, and `SGLANG_TORCH_PROFILER_DIR`, of profiles.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, field
from msgspec.structs import force_setattr

from pawl.features import server
from pawl.gpu.folders import cache_folder
from pawl.loops.versions import DEFAULT_VERSION, VersionName
from pawl.settings import (
    AboveZero,
    Apart,
    AtLeastOne,
    AtLeastZero,
    Setting,
    Text,
    UpTo64,
    UpTo1024,
    UpTo65536,
    UpTo1048576,
    settings_of,
)
from pawl.settings_file import read_settings

GROUPS = {
    "model": "what is served, and with which arithmetic",
    "server": "where it listens, and who may ask",
    "scheduling": "what runs next, and together with what",
    "memory": "pages of keys and values",
    "workers": "the processors that compute",
    "trace": "the record that `pawl audit` checks",
    "logs": "what is printed while it runs",
}


STREAMED_STEP_MS = 40.0
"""`max_step_ms` of a server, whose clients see tokens come, where nothing is said."""


class ConfigError(ValueError):
    """A setting that cannot be. `field` is its name in `ServerConfig` where one can be named."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def _meta(group: str, description: str, **more: Any) -> Meta:
    return Meta(description=description, extra={"group": group, **more})


def _feature(group: str, setting: str) -> Meta:
    """Help, and the values if it has names for them, as the registry of features has them."""
    extra = {"group": group, "choices": server.CHOICES.get(setting)}
    return Meta(description=server.help_of(setting), extra=extra)


def default_trace_dir() -> str:
    """Where traces go unless told."""
    return str(cache_folder() / "traces")


def default_profile_dir() -> str:
    """Where profiles go unless told. Tools that start SGLang's servers name the folder so."""
    return os.environ.get("SGLANG_TORCH_PROFILER_DIR") or str(cache_folder() / "profiles")


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one engine is set up. Each field's help, group and range stand in its annotation."""

    model: Annotated[
        Text, _meta("model", "a folder, a GGUF file, a name on the hub, smollm2 (comes with pip), or ghost (no model)")
    ] = "smollm2"
    served_model_name: Annotated[
        tuple[Text, ...],
        _meta("model", "name that requests use, may be repeated; replies carry the first; otherwise the model's own"),
    ] = ()
    weight_version: Annotated[
        VersionName, _meta("model", "what replies call the weights, until an update names others")
    ] = DEFAULT_VERSION
    dtype: Annotated[Literal["auto", "bf16", "fp32"], _meta("model", "of weights, keys and values; auto is bf16")] = (
        "auto"
    )
    weights: Annotated[
        Literal["auto", "stored", "bf16", "fp32"],
        _meta("model", "stored: quantised ones as their file has them; auto: so on CPUs, where no dtype is asked for"),
    ] = "auto"
    device: Annotated[Literal["cpu", "cuda"], _meta("model", "where the model computes")] = "cpu"
    context_length: Annotated[AtLeastOne | None, _feature("model", "context_length")] = None
    backend: Annotated[
        Literal["auto", "native", "triton", "torch"],
        _meta(
            "model",
            "native: compiled kernels for CPUs; triton: kernels for CUDA; torch: plain PyTorch; auto: the best",
        ),
    ] = "auto"
    grammar_backend: Annotated[
        Literal["auto", "xgrammar", "llguidance", "plain"],
        _meta("model", "what keeps output to a grammar; auto: the first that is installed; plain: regex, choice only"),
    ] = "auto"
    deterministic: Annotated[
        bool, _meta("model", "the same bits for a request whatever it is scheduled with; refused where that cannot be")
    ] = False

    enable_lora: Annotated[bool, _meta("model", "take adapters (LoRA); so it is with lora_paths")] = False
    lora_paths: Annotated[tuple[Text, ...], _meta("model", "adapters to begin with, NAME=FOLDER", together=True)] = ()
    max_loras_per_batch: Annotated[UpTo1024, _meta("model", "adapters that are computed at the same time")] = 8
    max_loaded_loras: Annotated[AtLeastOne | None, _meta("model", "adapters that may be loaded; otherwise 1024")] = None
    max_lora_rank: Annotated[AtLeastOne | None, _meta("model", "highest rank of an adapter that is taken")] = None
    lora_target_modules: Annotated[tuple[Text, ...], _meta("model", "modules adapters may change", together=True)] = ()
    pooling: Annotated[
        Literal["auto", "on", "off", "last", "mean", "cls"],
        _meta(
            "model",
            "how a text's vector is made; auto: as the model's folder says, if it does; on: likewise, else last",
        ),
    ] = "auto"

    host: Annotated[Text, _meta("server", "address to listen on; 0.0.0.0 is every interface")] = "127.0.0.1"
    port: Annotated[Annotated[int, Meta(ge=0, le=65535)], _meta("server", "port to listen on; 0 takes a free one")] = (
        30000
    )
    api_key: Annotated[
        Text | None, _meta("server", "key every request must carry as a bearer token; better kept in the file")
    ] = None
    admin_api_key: Annotated[
        Text | None, _meta("server", "key for control routes, such as flush_cache; better kept in the file")
    ] = None
    allowed_hosts: Annotated[
        Text | None,
        _meta("server", "names it answers to beside its address, with commas; on 127.0.0.1 no other Host is taken"),
    ] = None
    cors_origins: Annotated[
        Text | None, _meta("server", "origins whose web pages may ask, with commas; * is all; otherwise none")
    ] = None
    trainer_hosts: Annotated[
        Text | None,
        _meta("server", "hosts whose trainers may send weights, with commas; those of this machine always may"),
    ] = None
    trainer_timeout_s: Annotated[
        Annotated[float, Meta(gt=0, le=3000)],
        _meta("server", "seconds for a trainer's group to meet, and for one message of weights to come"),
    ] = 300.0
    max_body_mb: Annotated[AboveZero, _meta("server", "larger request bodies are refused with 413")] = 32.0
    tool_call_parser: Annotated[
        Literal["auto", "hermes", "llama3_json", "mistral", "pythonic"],
        _meta("server", "how the model writes calls of tools; auto: as its chat template says"),
    ] = "auto"
    reasoning_parser: Annotated[
        Literal["auto", "none", "deepseek_r1", "qwen3", "mistral"],
        _meta("server", "how the model marks reasoning; auto: as its chat template says; none: it stays in the text"),
    ] = "auto"

    max_running: Annotated[UpTo65536, _feature("scheduling", "max_running")] = 256
    max_queued: Annotated[UpTo1048576, _feature("scheduling", "max_queued")] = 1024
    prefill_chunk: Annotated[AtLeastOne | None, _feature("scheduling", "prefill_chunk")] = None
    max_step_ms: Annotated[AboveZero | None, _feature("scheduling", "max_step_ms")] = None
    pacing: Annotated[str, _feature("scheduling", "pacing")] = "overlap"
    mixed: Annotated[bool, _feature("scheduling", "mixed")] = True
    policy: Annotated[str, _feature("scheduling", "policy")] = "fcfs"
    router_policy: Annotated[str, _feature("scheduling", "router_policy")] = "round_robin"
    speculate: Annotated[str, _feature("scheduling", "speculate")] = "none"
    num_speculative_tokens: Annotated[UpTo64 | None, _feature("scheduling", "num_speculative_tokens")] = None
    prompt_lookup_min: Annotated[UpTo64 | None, _feature("scheduling", "prompt_lookup_min")] = None
    prompt_lookup_max: Annotated[UpTo64 | None, _feature("scheduling", "prompt_lookup_max")] = None
    request_timeout_s: Annotated[
        AboveZero, _meta("scheduling", "a request older than this is ended, unless it brings its own limit")
    ] = 600.0
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=(1 << 63) - 1)] | None,
        _meta("scheduling", "of every choice the engine makes by chance; otherwise a new one at each start"),
    ] = None

    page_size: Annotated[Annotated[int, Meta(ge=1, le=1024)], _feature("memory", "page_size")] = 16
    kv_tokens: Annotated[
        AtLeastOne | None, _meta("memory", "tokens the pages hold; otherwise what fits into kv_memory_gb")
    ] = None
    kv_memory_gb: Annotated[
        AboveZero | None, _meta("memory", "memory for pages; otherwise a share of what is free at the start")
    ] = None
    memory_share: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None,
        _meta(
            "memory",
            "of a CUDA device's memory, how much weights, pages and everything else may take together; otherwise 0.9",
        ),
    ] = None
    cache: Annotated[str, _feature("memory", "cache")] = "radix"
    eviction: Annotated[str, _feature("memory", "eviction")] = "lru"
    cache_core: Annotated[str, _feature("memory", "cache_core")] = "auto"
    hybrid_pools: Annotated[Literal["auto", "on", "off"], _feature("memory", "hybrid_pools")] = "auto"
    host_cache_gb: Annotated[
        AboveZero | None, _meta("memory", "host memory for pages that leave the device; otherwise none")
    ] = None
    storage_dir: Annotated[
        Text | None, _meta("memory", "folder for pages in files, which outlive the server; otherwise none")
    ] = None
    storage_gb: Annotated[AboveZero, _meta("memory", "disk for those files; the oldest are dropped beyond it")] = 16.0
    write_policy: Annotated[str, _feature("memory", "write_policy")] = "write-through"
    fetch_lease_s: Annotated[
        AboveZero,
        _meta("memory", "how long a request waits for pages from there before it goes on without them"),
    ] = 2.0

    runtime: Annotated[
        Literal["local", "processes"],
        _meta("workers", "local: everything in one process; processes, and so with --nodes: a replica in its own"),
    ] = "local"
    dp: Annotated[UpTo64, _feature("workers", "dp")] = 1
    max_dp: Annotated[UpTo64 | None, _feature("workers", "max_dp")] = None
    scale_at: Annotated[AtLeastOne | None, _meta("workers", "open requests too many for each; else all it runs")] = None
    scale_down_s: Annotated[AboveZero, _meta("workers", "seconds of little to do, before a replica leaves")] = 60.0
    nodes: Annotated[
        UpTo64,
        _meta("workers", "hosts that share the replicas out evenly; on each other one, `pawl node --join`"),
    ] = 1
    nodes_per_replica: Annotated[UpTo64 | None, _meta("workers", "hosts of its stages; else as few as can be")] = None
    head_serves: Annotated[bool, _meta("workers", "the head's host is one of the nodes, and has replicas too")] = True
    ray: Annotated[Text | None, _meta("workers", "Ray cluster that has the hosts: auto, or its HOST:PORT")] = None
    listen: Annotated[Text | None, _meta("workers", "where nodes join, tcp://HOST:PORT")] = None
    keys: Annotated[Text | None, _meta("workers", "folder of keys for links between hosts, from `pawl keys`")] = None
    node_timeout_s: Annotated[
        AboveZero, _meta("workers", "how long the head waits for nodes at the start, and a node for its head")
    ] = 300.0
    disaggregate: Annotated[Apart | None, _feature("workers", "disaggregate")] = None
    role: Annotated[Literal["prefill", "decode"] | None, _meta("workers", "of the head's host; else decode")] = None
    prefill_lease_s: Annotated[
        AboveZero, _meta("workers", "how long a request waits for its prefill elsewhere before it is computed here")
    ] = 30.0
    page_transport: Annotated[
        Literal["auto", "messages", "nixl"], _meta("workers", "how pages get to decode replicas in other processes")
    ] = "auto"
    threads: Annotated[
        AtLeastOne | None,
        _meta("workers", "CPU threads of the model; otherwise one for each core this process may use"),
    ] = None
    tp: Annotated[UpTo1024, _feature("workers", "tp")] = 1
    prefill_tp: Annotated[UpTo1024 | None, _meta("workers", "ranks of a replica that prefills; otherwise tp")] = None
    decode_tp: Annotated[UpTo1024 | None, _meta("workers", "ranks of a replica that decodes; otherwise tp")] = None
    pp: Annotated[UpTo1024, _meta("workers", "stages that share out the layers of the model")] = 1
    ep: Annotated[UpTo1024, _meta("workers", "parts of these ranks that share out the experts of a layer")] = 1
    enable_eplb: Annotated[bool, _meta("workers", "move experts between these parts by what tokens use")] = False
    eplb_rebalance_num_iterations: Annotated[
        AtLeastZero, _meta("workers", "steps after which they move; 0: only when /rebalance_experts asks")
    ] = 1000
    ep_num_redundant_experts: Annotated[AtLeastZero, _meta("workers", "copies of a layer's busiest experts")] = 0
    rank_timeout_s: Annotated[
        AboveZero, _meta("workers", "a step that takes the ranks longer is lost, and they are started again")
    ] = 60.0

    trace: Annotated[bool, _meta("trace", "record what was scheduled and what came back")] = True
    trace_dir: Annotated[Text, _meta("trace", "folder of traces; otherwise ~/.cache/pawl/traces")] = field(
        default_factory=default_trace_dir
    )
    trace_limit_mb: Annotated[AtLeastOne, _meta("trace", "disk for traces; the oldest are dropped beyond it")] = 256
    trace_required: Annotated[
        bool, _meta("trace", "take no requests while records of the trace are lost: a full disk, a removed folder")
    ] = False
    profile_dir: Annotated[
        Text,
        _meta("trace", "folder of profiles; otherwise what SGLANG_TORCH_PROFILER_DIR holds, or ~/.cache/pawl/profiles"),
    ] = field(default_factory=default_profile_dir)
    log_format: Annotated[
        Literal["auto", "console", "json"], _meta("logs", "auto: console on a terminal, JSON lines otherwise")
    ] = "auto"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], _meta("logs", "the least important line still printed")
    ] = "info"

    def __post_init__(self) -> None:
        # A shell expands ~ in an argument of its own, but not in --name=~/x, and a file has no shell.
        for name in ("trace_dir", "profile_dir"):
            force_setattr(self, name, str(Path(getattr(self, name)).expanduser()))
        if self.storage_dir is not None:
            force_setattr(self, "storage_dir", str(Path(self.storage_dir).expanduser()))

    @property
    def in_processes(self) -> bool:
        """Whether replicas have processes of their own."""
        return self.runtime == "processes" or self.listen is not None or self.ray is not None

    def public(self) -> dict[str, Any]:
        """Every setting as plain data, keys hidden: fit for a reply, a log or a trace."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values | {name: "***" for name in ("api_key", "admin_api_key") if values[name] is not None}


@cache
def all_settings() -> tuple[Setting, ...]:
    """Every setting of `ServerConfig`, in the order of its definition."""
    return settings_of(ServerConfig)


def of_server(config: ServerConfig) -> ServerConfig:
    """The configuration of a server, where what was not said is as its clients need it."""
    step_ms = STREAMED_STEP_MS if config.max_step_ms is None else config.max_step_ms
    return msgspec.structs.replace(config, max_step_ms=step_ms)


def build_config(settings: Mapping[str, Any], file: Path | None = None) -> ServerConfig:
    """The checked configuration: `settings` over those of `file` over the defaults.

    Raises ConfigError that names the setting, says what is allowed, and names the nearest setting for a name that
    does not exist.
    """
    merged = (read_settings(file, ConfigError) if file else {}) | dict(settings)
    for setting in all_settings():
        if setting.several and isinstance(merged.get(setting.name), str):
            merged[setting.name] = [merged[setting.name]]
    known = [setting.name for setting in all_settings()]
    for name in merged:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"there is no setting {name!r}{hint}", name)
    for setting in all_settings():
        if setting.choices and merged.get(setting.name, setting.default) not in (*setting.choices, setting.default):
            raise _not_among(setting, merged[setting.name])
    try:
        return msgspec.convert(merged, ServerConfig)
    except msgspec.ValidationError as error:
        raise _explained(error, merged) from error


def _explained(error: msgspec.ValidationError, merged: Mapping[str, Any]) -> ConfigError:
    message, _, place = str(error).partition(" - at `$.")
    name = place.rstrip("`")
    for setting in all_settings():
        if setting.name == name:
            return ConfigError(f"{name}: {message.replace('`', '')}, not {merged[name]!r}", name)
    return ConfigError(message)


def _not_among(setting: Setting, value: Any) -> ConfigError:
    return ConfigError(f"{setting.name}: one of {', '.join(setting.choices or ())}, not {value!r}", setting.name)
