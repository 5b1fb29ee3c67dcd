"""The one place that decides which backend computes."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Literal, TypeAlias

import structlog
import torch
from torch import Tensor

from gpu.backend import Backend, BackendUnavailable
from gpu.kv import KvStore
from gpu.models.config import ModelConfig
from gpu.models.decoder import TorchDecoder

BackendChoice: TypeAlias = Literal["auto", "torch", "native"]

log = structlog.get_logger()


def native_backend() -> Callable[..., Backend]:
    """The compiled CPU backend's class. Raises BackendUnavailable when this build has none."""
    try:
        module = importlib.import_module("gpu.native.backend")
    except ImportError as error:
        raise BackendUnavailable("native", f"its module cannot be imported ({error})") from error
    made: Callable[..., Backend] = module.NativeBackend
    return made


def select_backend(
    requested: BackendChoice,
    config: ModelConfig,
    weights: dict[str, Tensor],
    kv: KvStore,
    *,
    threads: int,
    deterministic: bool = False,
) -> Backend:
    """Make the backend for `kv`'s device and dtype. It takes `weights` over.

    auto: the compiled kernels on a CPU where they can be built, plain torch elsewhere (the reason is logged).
    deterministic: only a backend whose rows do not depend on their batch, and none in its place.
    Raises BackendUnavailable when `native` was asked for and cannot be, or nothing keeps that promise.
    """
    device, dtype = kv.data.device, kv.data.dtype
    if deterministic:
        requested = _deterministic_choice(requested, device)
    if requested == "torch" or (requested == "auto" and device.type != "cpu"):
        return TorchDecoder(config, weights, kv, threads=threads)
    if requested not in ("auto", "native"):
        raise BackendUnavailable(requested, "there is no such backend; known: auto, torch, native")
    try:
        if device.type != "cpu":
            raise BackendUnavailable("native", f"it computes on the CPU, not on {device}")
        if dtype not in (torch.float32, torch.bfloat16):
            raise BackendUnavailable("native", f"it computes in float32 and bfloat16, not in {dtype}")
        return native_backend()(config, weights, kv, threads=threads)
    except BackendUnavailable as error:
        if requested == "native":
            raise
        log.info("plain torch instead of compiled kernels", reason=error.reason)
        return TorchDecoder(config, weights, kv, threads=threads)


def _deterministic_choice(requested: BackendChoice, device: torch.device) -> BackendChoice:
    """The backend whose rows are bitwise independent of their batch. Raises BackendUnavailable where there is none."""
    if requested == "torch":
        reason = "its sums run in an order that depends on the batch, so it cannot be deterministic; native can"
        raise BackendUnavailable("torch", reason)
    if device.type != "cpu":
        raise BackendUnavailable(
            requested, f"there are no deterministic kernels for {device}; native has some for CPUs"
        )
    return "native"
