"""Devices: how much memory is free on one, and moving arrays to and from it. PyTorch is imported where it is needed:
the compiled kernels compute on numpy arrays, and without it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Array: TypeAlias = "NDArray[Any] | Tensor"
"""What is passed on between the parts of a step: logits, tokens, draws."""
Device: TypeAlias = "torch.device | None"
"""Where a backend has its arrays. None: they are numpy's."""
_MEMORY_FACTS = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@overload
def upload(array: NDArray[Any], device: torch.device) -> Tensor: ...
@overload
def upload(array: NDArray[Any], device: Device) -> Array: ...
def upload(array: NDArray[Any], device: Device) -> Array:
    """`array` as a tensor on `device`, or itself. On the CPU a tensor shares the array's memory where that is
    contiguous and writable (arrays of received messages are not); on CUDA the copy is asynchronous."""
    if device is None:
        return array
    import torch

    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def upload_into(array: NDArray[Any], destination: Tensor) -> None:
    """Copy `array` into `destination`, a contiguous tensor of its shape and dtype; asynchronous on CUDA."""
    import torch

    source = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    destination.copy_(source if destination.device.type == "cpu" else source.pin_memory(), non_blocking=True)


def download(array: Array) -> NDArray[Any]:
    """`array` as one of numpy's on the host, once everything issued before is done. From CUDA through pinned memory; on
    the CPU it shares the tensor's memory."""
    if isinstance(array, np.ndarray):
        return array
    tensor = array
    if tensor.device.type == "cpu":
        found: NDArray[Any] = tensor.numpy()
        return found
    import torch

    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return pinned.numpy()


Some = TypeVar("Some", "NDArray[Any]", "Tensor")


def joined(parts: Sequence[Some]) -> Some:
    """Arrays below each other."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))


def int32(array: Some) -> Some:
    """Whole numbers as int32."""
    return array.astype(np.int32) if isinstance(array, np.ndarray) else array.int()


def copied(array: Some) -> Some:
    """A copy."""
    return array.copy() if isinstance(array, np.ndarray) else array.clone()


def release_pages(array: NDArray[Any]) -> None:
    """Give the memory behind a contiguous array back to the system. Its addresses stay; they read as zeros, and
    have memory again when they are written. Raises OSError, also where the system cannot do that."""
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "only Linux takes pages back")
    start, end = array.ctypes.data, array.ctypes.data + array.nbytes
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if last <= first:
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(mmap.MADV_DONTNEED)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def give_back_device_memory(device: Device) -> None:
    """Return what was freed on a CUDA device to it; on a CPU see `pawl.gpu.heap`."""
    if device is not None and device.type == "cuda":
        import torch

        torch.cuda.empty_cache()


def computing_on(device: Device) -> AbstractContextManager[object]:
    """While a step is computed: PyTorch keeps no gradients."""
    if device is None:
        return nullcontext()
    import torch

    return torch.inference_mode()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device has no memory left for what was wanted."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of work beside the current one, on a CUDA device."""
    import torch

    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def num_devices() -> int:
    """CUDA devices that there are."""
    import torch

    return torch.cuda.device_count()


def available_threads() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(device: torch.device | str) -> int:
    """Bytes that could be allocated on `device` now. On a CPU: what the system can give without swapping, or what the
    container's limit leaves, whichever is less."""
    if not str(device).startswith("cpu"):
        import torch

        free, _total = torch.cuda.mem_get_info(device)
        return int(free)
    return min(_system_memory(), _container_memory())


def _system_memory() -> int:
    if _MEMORY_FACTS.exists():
        for line in _MEMORY_FACTS.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    # Not Linux: what is installed is the nearest fact there is.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _container_memory() -> int:
    """What the control group's limit leaves (version 2); no limit: as much as there could be."""
    try:
        limit, used = ((_CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
    except OSError:
        return 1 << 62
    return 1 << 62 if limit == "max" else max(0, int(limit) - int(used))
