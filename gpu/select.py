"""The one place that decides which backend computes."""

from __future__ import annotations

import importlib
import os
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import structlog

from pawl.gpu.backend import Backend, BackendUnavailable
from pawl.gpu.copies import Copies, NoCopies
from pawl.gpu.devices import Device
from pawl.gpu.dtypes import BFLOAT16, FLOAT32, name_of
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.models.registry import torch_decoder
from pawl.gpu.native.build import Sums, sums_of
from pawl.gpu.sampling.last_tokens import LastTokens
from pawl.gpu.sampling.sampler import Sampler
from pawl.gpu.weights.blocks import Weights

if TYPE_CHECKING:
    from pawl.gpu.parallel.rank import Rank

BackendChoice: TypeAlias = Literal["auto", "torch", "native", "triton"]

LEAST_CAPABILITY = (8, 0)
"""Of a CUDA device: the first with matrix units for bfloat16."""

log = structlog.get_logger()


def native_backend() -> Callable[..., Backend]:
    """The compiled CPU backend's class. Raises BackendUnavailable when this build has none."""
    made: Callable[..., Backend] = _class_of("native", "pawl.gpu.native.backend", "NativeBackend")
    return made


def blocks_refused(requested: BackendChoice, config: ModelConfig, device: str) -> str:
    """Why the backend that these would get does not compute quantised weights as they are; "" where it does."""
    if device != "cpu" or requested not in ("auto", "native"):
        return "only the compiled CPU kernels compute them (backend native)"
    try:
        _class_of("native", "pawl.gpu.native.backend", "check_available")(config)
    except BackendUnavailable as error:
        return error.reason
    return ""


def triton_backend() -> Callable[..., Backend]:
    """The class of the decoder in Triton kernels. Raises BackendUnavailable where Triton is not installed."""
    made: Callable[..., Backend] = _class_of("triton", "pawl.gpu.cuda.decoder", "TritonDecoder")
    return made


def _class_of(backend: str, module: str, name: str) -> Any:
    """A class of a backend whose module may not be importable here. Raises BackendUnavailable."""
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise BackendUnavailable(backend, f"its module cannot be imported ({error})") from error


def processor_of(backend: Backend) -> str:
    """What computes, in words: where two of these differ, last bits may. Empty where it is not known."""
    device = backend.device
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return str(getattr(backend, "target", ""))


def same_bits(processor: str, other: str) -> bool:
    """Whether what is computed with one is, to the bit, what is computed with the other; see `processor_of`.

    The compiled kernels have the same sums wherever sums are fused and made in the same order, and so have numpy's
    logarithms of float32 on x86 processors that have AVX2 (decisions 0052 and 0073).
    """
    both = processor.startswith("avx") and other.startswith("avx")
    return processor == other or (both and sums_of(processor) == sums_of(other))


def copies_from(device: Device) -> Copies:
    """The way to the host from `device`."""
    if device is None or device.type != "cuda":
        return NoCopies()
    made: Copies = _class_of("cuda", "pawl.gpu.cuda.copies", "StreamCopies")(device)
    return made


def sampler_for(backend: Backend, vocab_size: int, num_slots: int) -> Sampler:
    """What draws tokens, by the same kernels as `backend` computes with."""
    by_kernels = backend.name.startswith("triton")
    kind = _class_of("triton", "pawl.gpu.cuda.sampler", "KernelSampler") if by_kernels else Sampler
    made: Sampler = kind(vocab_size, num_slots, backend.device)
    return made


def last_tokens_for(backend: Backend, num_slots: int, rank: Rank | None = None) -> LastTokens:
    """Where the last tokens are kept, by the same kernels as `backend` computes with."""
    by_kernels = backend.name.startswith("triton")
    kind = _class_of("triton", "pawl.gpu.cuda.last_tokens", "KernelLastTokens") if by_kernels else LastTokens
    made: LastTokens = kind(num_slots, backend.device)
    if rank is None or rank.shard.topology.pipeline == 1:
        return made
    from pawl.gpu.parallel.stage_tokens import across_stages

    return across_stages(made, rank)


def select_backend(
    requested: BackendChoice,
    config: ModelConfig,
    weights: Weights,
    kv: KvStore,
    *,
    threads: int,
    deterministic: bool = False,
    rank: Rank | None = None,
    sums: Sums | None = None,
) -> Backend:
    """Make the backend for `kv`'s device and dtype. It takes `weights` over. With `rank`, config and weights are those
    of its shard.

    auto: the compiled kernels on a CPU where they can be built, Triton's on a CUDA device, plain torch where neither
    can be, or where the model has what they do not know (the reason is logged).
    sums: of the compiled kernels, where it is not the fastest way here.
    deterministic: only a backend whose rows do not depend on their batch, and none in its place.
    Raises BackendUnavailable when one was asked for and cannot be, or nothing keeps that promise.
    """
    if requested not in typing.get_args(BackendChoice):
        known = ", ".join(typing.get_args(BackendChoice))
        raise BackendUnavailable(requested, f"there is no such backend; known: {known}")
    if requested == "torch" and deterministic:
        reason = "its sums run in an order that depends on the batch, so it cannot be deterministic; native can"
        raise BackendUnavailable("torch", reason)
    if requested == "torch":
        return _torch(config, weights, kv, threads, rank)
    wanted = requested
    if wanted == "auto":
        wanted = "native" if kv.full.on_host else "triton"
    try:
        if wanted == "triton":
            if rank is not None:
                raise BackendUnavailable(wanted, "its kernels do not share a model out among ranks; torch does")
            _check_triton(kv)
            return triton_backend()(config, weights, kv, threads=threads, deterministic=deterministic)
        _check_native(kv)
        return native_backend()(config, weights, kv, threads=threads, rank=rank, sums=sums)
    except BackendUnavailable as error:
        if requested != "auto" or deterministic:
            raise
        log.info("plain torch instead of compiled kernels", reason=error.reason)
        return _torch(config, weights, kv, threads, rank)


def _torch(config: ModelConfig, weights: Weights, kv: KvStore, threads: int, rank: Rank | None) -> Backend:
    if rank is not None and rank.shard.gathers:
        raise BackendUnavailable("torch", "its ranks add up what they compute, and these have parts of another kind")
    return torch_decoder(config)(config, weights, kv, threads=threads, rank=rank)


def _check_native(kv: KvStore) -> None:
    """Raises BackendUnavailable when the compiled CPU kernels cannot work on this store."""
    if not kv.full.on_host:
        raise BackendUnavailable("native", f"it computes on the CPU, not on {kv.device}")
    if kv.dtype not in (FLOAT32, BFLOAT16):
        raise BackendUnavailable("native", f"it computes in float32 and bfloat16, not in {name_of(kv.dtype)}")


def _check_triton(kv: KvStore) -> None:
    """Raises BackendUnavailable when Triton's kernels cannot work on this store."""
    import torch

    device = kv.data.device
    # Under Triton's interpreter the kernels run on the CPU, a thousand times slower: for tests.
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise BackendUnavailable("triton", "its kernels are for CUDA devices, not for the CPU")
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < LEAST_CAPABILITY:
        raise BackendUnavailable("triton", f"{torch.cuda.get_device_name(device)} is older than compute capability 8.0")
