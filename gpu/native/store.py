"""The kernels for a store of keys and values, if they can work on it."""

from __future__ import annotations

import torch
from torch import Tensor

from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.native.bindings import Library, load_library
from pawl.gpu.native.build import NativeUnavailable


def library_for(config: ModelConfig, kv: KvStore) -> Library:
    """The kernels, if they can work on this store. Raises NativeUnavailable."""
    if kv.data.device.type != "cpu":
        raise NativeUnavailable(f"keys and values are on {kv.data.device}, these kernels run on the CPU")
    if kv.data.dtype not in (torch.bfloat16, torch.float32):
        raise NativeUnavailable(f"no kernels for {kv.data.dtype}; there are some for bfloat16 and float32")
    num_windowed = [kv.windowed(layer) for layer in range(config.num_layers)].count(True)
    _check_store(config, kv.data, config.num_layers - num_windowed, kv.num_pages, kv.page_size)
    if kv.window_data is not None:
        _check_store(config, kv.window_data, num_windowed, kv.num_window_pages, kv.page_size)
    return load_library()


def _check_store(config: ModelConfig, data: Tensor, num_layers: int, num_pages: int | None, page_size: int) -> None:
    expected = (num_layers, 2, num_pages, page_size, config.num_kv_heads, config.head_dim)
    if tuple(data.shape) != expected or not data.is_contiguous():
        raise NativeUnavailable(f"keys and values of shape {tuple(data.shape)} where {expected} is needed")
