"""Devices: how much memory is free on one, and moving arrays to and from it."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
"""By the names that settings have for them."""
_MEMORY_FACTS = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def upload(array: NDArray[Any], device: torch.device) -> Tensor:
    """`array` as a tensor on `device`. On the CPU it shares the array's memory where that is contiguous and writable
    (arrays of received messages are not); on CUDA the copy is asynchronous."""
    tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def upload_into(array: NDArray[Any], destination: Tensor) -> None:
    """Copy `array` into `destination`, a contiguous tensor of its shape and dtype; asynchronous on CUDA."""
    source = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    destination.copy_(source if destination.device.type == "cpu" else source.pin_memory(), non_blocking=True)


def download(tensor: Tensor) -> NDArray[Any]:
    """`tensor` as an array on the host, once everything issued before is done. From CUDA through pinned memory; on the
    CPU it shares the tensor's memory."""
    if tensor.device.type == "cpu":
        return tensor.numpy()
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    pinned.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensor.device).synchronize()
    return pinned.numpy()


def release_pages(tensor: Tensor) -> None:
    """Give the memory behind a contiguous CPU tensor back to the system. Its addresses stay; they read as zeros, and
    have memory again when they are written. Raises OSError, also where the system cannot do that."""
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, "only Linux takes pages back")
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
    first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, end // mmap.PAGESIZE * mmap.PAGESIZE
    if last <= first:
        return
    library = ctypes.CDLL(None, use_errno=True)
    if library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), ctypes.c_int(mmap.MADV_DONTNEED)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def give_back_device_memory(device: torch.device) -> None:
    """Return what was freed on a CUDA device to it; on a CPU see `pawl.gpu.heap`."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream of work beside the current one, on a CUDA device."""
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def available_threads() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory(device: torch.device | str) -> int:
    """Bytes that could be allocated on `device` now. On a CPU: what the system can give without swapping, or what the
    container's limit leaves, whichever is less."""
    device = torch.device(device)
    if device.type == "cuda":
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
