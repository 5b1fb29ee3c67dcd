"""Looks at the machine: what an engine with given settings would find here, and what to do about what is missing.

Each check is a function from the settings to one `Finding`. A problem keeps `pawl serve` from working; a warning makes
it slower or smaller than it could be.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

import msgspec

from pawl import DISTRIBUTION
from pawl.config import ServerConfig, default_trace_dir
from pawl.gpu.folders import cache_folder

X86_FEATURES = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
CPU_FEATURES = (*X86_FEATURES, "asimd", "asimddp", "i8mm", "bf16")
"""What makes a difference to the kernels, on x86 and ARM."""
GIB = 1 << 30
LOW_MEMORY = 2 * GIB
LOW_DISK = GIB
"""Weights in the cache folder take twice a small model's GGUF file."""
CONNECTION_RESERVE = 64
"""Open files that are not connections: the model, the trace, libraries."""


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(msgspec.Struct, frozen=True):
    """What one check found."""

    subject: str
    level: Level
    detail: str
    advice: str = ""
    """What to do; empty when all is well."""


def examine(config: ServerConfig) -> Iterator[Finding]:
    """Every check, cheap ones first. A check that fails itself is a problem, and the next one still runs."""
    for subject, check in CHECKS.items():
        try:
            yield check(config)
        # The doctor must survive any patient; what a broken installation raises cannot be listed.
        except Exception as error:
            yield Finding(subject, Level.PROBLEM, f"{type(error).__name__}: {error}", "this check itself failed")


def python(config: ServerConfig) -> Finding:
    """The interpreter."""
    return Finding("python", Level.OK, f"{platform.python_version()} at {sys.executable}, {platform.platform()}")


def packages(config: ServerConfig) -> Finding:
    """Whether everything Pawl depends on is installed."""
    try:
        wanted = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", Level.WARNING, "Pawl runs from its folder and is not installed", "make setup")
    names = [line.partition(";")[0].strip() for line in wanted if "extra ==" not in line]
    bare = [name.split(">")[0].split("=")[0].split("<")[0].strip() for name in names]
    missing = [name for name in bare if not _installed(name)]
    if missing:
        return Finding("packages", Level.PROBLEM, f"missing: {', '.join(missing)}", "make setup")
    return Finding("packages", Level.OK, f"all {len(bare)} are installed")


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def processor(config: ServerConfig) -> Finding:
    """Cores this process may use, and the instructions that matter."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    info = Path("/proc/cpuinfo")
    text = info.read_text() if info.exists() else ""
    words = set(text.split())
    features = [feature for feature in CPU_FEATURES if feature in words]
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    detail = f"{name or platform.machine()}, {cores} cores for this process, {' '.join(features) or 'features unknown'}"
    if platform.machine() == "x86_64" and text and "avx2" not in features:
        return Finding("cpu", Level.WARNING, detail, "without AVX2 the CPU kernels are slow; use a newer machine")
    if config.threads is not None and config.threads > cores:
        return Finding("cpu", Level.WARNING, detail, f"--threads {config.threads} is more than there are cores")
    return Finding("cpu", Level.OK, detail)


def memory(config: ServerConfig) -> Finding:
    """Memory that is free now."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return Finding("memory", Level.OK, "not known on this system")
    values = {line.split(":")[0]: int(line.split()[1]) << 10 for line in info.read_text().splitlines() if ":" in line}
    free, total = values["MemAvailable"], values["MemTotal"]
    detail = f"{free / GIB:.1f} of {total / GIB:.1f} GiB are free"
    if free < LOW_MEMORY:
        return Finding("memory", Level.WARNING, detail, "a small model needs about 2 GiB; set --kv-memory-gb")
    return Finding("memory", Level.OK, detail)


def open_files(config: ServerConfig) -> Finding:
    """Whether every request that may be open can have its connection."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = config.max_running + config.max_queued + CONNECTION_RESERVE
    if limit != resource.RLIM_INFINITY and limit < needed:
        advice = f"ulimit -n {needed} before pawl serve, or a smaller --max-queued"
        return Finding("open files", Level.WARNING, f"{limit} allowed, {needed} may be needed", advice)
    return Finding("open files", Level.OK, f"{limit} allowed, {needed} may be needed")


def port(config: ServerConfig) -> Finding:
    """Whether the port is free."""
    place = f"{config.host}:{config.port}"
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        socket.create_server((config.host, config.port), family=family).close()
    except OSError as error:
        advice = "stop what listens there, or pawl serve --port 0, which takes a free one"
        return Finding("port", Level.PROBLEM, f"{place}: {error.strerror or error}", advice)
    return Finding("port", Level.OK, f"{place} is free")


def disk(config: ServerConfig) -> Finding:
    """Room for traces and for cached weights, and the right to write there."""
    traces = [(Path(config.trace_dir), (config.trace_limit_mb << 20))] if config.trace else []
    facts = []
    for folder, needed in [*traces, (cache_folder(), LOW_DISK)]:  # what was chosen must not hide behind the home
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            advice = "set PAWL_CACHE or --trace-dir to a folder that can be written"
            chosen = config.trace and config.trace_dir != default_trace_dir()
            level = Level.PROBLEM if chosen and folder == Path(config.trace_dir) else Level.WARNING
            return Finding("disk", level, f"{folder} cannot be written", advice)
        free = shutil.disk_usage(existing).free
        facts.append(f"{folder}: {free / GIB:.1f} GiB free")
        if free < needed:
            advice = f"{needed / GIB:.2f} GiB are wanted there: make room, or set PAWL_CACHE, --trace-dir, --no-trace"
            return Finding("disk", Level.WARNING, "; ".join(facts), advice)
    return Finding("disk", Level.OK, "; ".join(facts))


def compiler(config: ServerConfig) -> Finding:
    """The C++ compiler that builds the CPU kernels."""
    candidates = [name for name in (os.environ.get("CXX"), "c++", "g++", "clang++") if name]
    found = next((path for path in map(shutil.which, candidates) if path), None)
    if found is None:
        advice = "install g++ or clang++ for the compiled kernels; plain PyTorch is several times slower"
        return Finding("compiler", Level.WARNING, f"none of {', '.join(candidates)} is installed", advice)
    done = subprocess.run([found, "--version"], capture_output=True, text=True)
    return Finding("compiler", Level.OK, f"{found}: {(done.stdout or done.stderr).strip().splitlines()[0]}")


def torch(config: ServerConfig) -> Finding:
    """PyTorch, and the GPU where one is asked for."""
    import torch

    detail = f"{torch.__version__}, {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        detail += f", {properties.name} with {properties.total_memory / GIB:.0f} GiB"
    elif config.device == "cuda":
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "is built without CUDA"
        return Finding("torch", Level.PROBLEM, f"{detail}, sees no GPU", f"this PyTorch {built}; check nvidia-smi")
    else:
        detail += ", no GPU (none is asked for)"
    return Finding("torch", Level.OK, detail)


def kernels(config: ServerConfig) -> Finding:
    """Builds the CPU kernels if need be, and compares them with plain PyTorch on a tiny model."""
    from pawl.gpu.backend import BackendUnavailable
    from pawl.selftest import native_error

    try:
        errors = {name: native_error(name) for name in ("fp32", "bf16")}
    except BackendUnavailable as error:
        level = Level.PROBLEM if config.backend == "native" else Level.WARNING
        return Finding("kernels", level, error.reason, "plain PyTorch computes instead: several times slower")
    detail = ", ".join(
        f"{name} differs by {error.largest:.1e} of {error.allowed:.0e}" for name, error in errors.items()
    )
    if any(error.largest > error.allowed for error in errors.values()):
        return Finding(
            "kernels", Level.PROBLEM, detail, "they compute wrong here: --backend torch, and please report it"
        )
    return Finding("kernels", Level.OK, f"built; against plain PyTorch {detail}")


def model(config: ServerConfig) -> Finding:
    """Whether the model of these settings is there. A name on the hub is looked for on this machine only."""
    if config.model == "ghost":
        return Finding("model", Level.OK, "ghost: no weights, nothing to load")
    from pawl.gpu.encoder.config import encoder_config, is_encoder
    from pawl.gpu.models.config import UnsupportedModel
    from pawl.gpu.weights.gguf import GgufFormatError
    from pawl.gpu.weights.locate import ModelNotFound, locate
    from pawl.gpu.weights.safetensors import FolderError
    from pawl.gpu.weights.source import resolve_source

    try:
        path = locate(config.model)
        if path is None:
            return _hub_model(config.model)
        if is_encoder(path):
            encoder = encoder_config(path)
            shape = f"encoder, {encoder.num_layers} layers, context {encoder.max_position:,}"
            return Finding("model", Level.OK, f"{config.model}: {path} ({shape})")
        source = resolve_source(config.model)
    except (ModelNotFound, UnsupportedModel, GgufFormatError, FolderError) as error:
        return Finding("model", Level.PROBLEM, str(error), "name another one: --model")
    shape = f"{source.config.architecture}, {source.config.num_layers} layers, context {source.config.max_position:,}"
    if source.scheme is not None:
        shape += f", {source.scheme.bits} bits ({source.scheme.method})"
    return Finding("model", Level.OK, f"{config.model}: {source.path} ({shape})")


def _hub_model(name: str) -> Finding:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return Finding("model", Level.OK, f"{name} was downloaded before")
    return Finding("model", Level.WARNING, f"{name} is not on this machine", "pawl serve will try to download it")


CHECKS: dict[str, Callable[[ServerConfig], Finding]] = {
    "python": python,
    "packages": packages,
    "cpu": processor,
    "memory": memory,
    "open files": open_files,
    "port": port,
    "disk": disk,
    "compiler": compiler,
    "torch": torch,
    "kernels": kernels,
    "model": model,
}
