"""The kernels for a store of keys and values, if they can work on it."""

from __future__ import annotations

from pawl.gpu.dtypes import BFLOAT16, FLOAT32, name_of
from pawl.gpu.kv import KvStore
from pawl.gpu.models.config import ModelConfig
from pawl.gpu.native.bindings import Library, load_library
from pawl.gpu.native.build import NativeUnavailable, Sums
from pawl.gpu.store import Store


def library_for(config: ModelConfig, kv: KvStore, sums: Sums | None = None) -> Library:
    """The kernels that sum so (see `load_library`), if they can work on this store. Raises NativeUnavailable."""
    if not kv.full.on_host:
        raise NativeUnavailable(f"keys and values are on {kv.device}, these kernels run on the CPU")
    if kv.dtype not in (BFLOAT16, FLOAT32):
        raise NativeUnavailable(f"no kernels for {name_of(kv.dtype)}; there are some for bfloat16 and float32")
    num_windowed = [kv.windowed(layer) for layer in range(config.num_layers)].count(True)
    _check_store(config, kv.full, config.num_layers - num_windowed, kv.num_pages, kv.page_size)
    if kv.window is not None:
        _check_store(config, kv.window, num_windowed, kv.num_window_pages, kv.page_size)
    return load_library(sums)


def _check_store(config: ModelConfig, store: Store, num_layers: int, num_pages: int | None, page_size: int) -> None:
    expected = (num_layers, 2, num_pages, page_size, config.num_kv_heads, config.head_dim)
    if store.shape != expected:
        raise NativeUnavailable(f"keys and values of shape {store.shape} where {expected} is needed")
