"""One allocation of pages: bytes on the host, which PyTorch may see as a tensor, or a tensor on a device."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.devices import release_pages
from pawl.gpu.dtypes import torch_dtype
from pawl.gpu.populate import ahead_of

if TYPE_CHECKING:
    from torch import Tensor

LINE_BYTES = 64
"""Of a line of a processor's caches."""


class Store:
    """Pages of some layers, zeroed at the start: [layers, 2, pages, page_size, kv_heads, head_dim]."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], device: str) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.nbytes = math.prod(shape) * dtype.itemsize
        # Memory of the system's, which it maps page by page as it is first written: a large store costs what is used.
        self.memory = _zeroed(self.nbytes if self.on_host else 0)
        """uint8 [nbytes], where it is on the host."""
        self._ahead = ahead_of(self.by_page) if self.on_host else None
        self.reached(0)  # while the rest of a server starts
        self._tensor: Tensor | None = None
        if not self.on_host:
            _ = self.tensor  # a device has its memory from the beginning

    @property
    def on_host(self) -> bool:
        return self.device.startswith("cpu")

    @property
    def tensor(self) -> Tensor:
        """The store as PyTorch sees it: on the host the same memory."""
        if self._tensor is None:
            import torch

            dtype = torch_dtype(self.dtype)
            if self.on_host:
                self._tensor = torch.from_numpy(self.memory).view(dtype).view(self.shape)
            else:
                self._tensor = torch.zeros(self.shape, dtype=dtype, device=self.device)
        return self._tensor

    @property
    def by_page(self) -> NDArray[np.uint8]:
        """[layers * 2, pages, bytes], on the host, a view."""
        layers, two, pages, *_ = self.shape
        return self.memory.reshape(layers * two, pages, -1)

    @property
    def page_bytes(self) -> int:
        """Bytes of one page over all layers."""
        return self.nbytes // self.shape[2]

    def reached(self, page: int) -> None:
        """See `KvStore.reached`."""
        if self._ahead is not None:
            self._ahead.reached(page)

    def release(self) -> None:
        """See `KvStore.release`."""
        if self._ahead is not None:
            self._ahead.close()
        if self.on_host:
            release_pages(self.memory)
        else:
            self.tensor.untyped_storage().resize_(0)

    def resume(self) -> None:
        """See `KvStore.resume`."""
        if self._ahead is not None:
            self._ahead.open()
        if not self.on_host:
            self.tensor.untyped_storage().resize_(self.nbytes)
            self.tensor.zero_()


def _zeroed(nbytes: int) -> NDArray[np.uint8]:
    """Memory that begins at a line of the caches, as what the kernels read of it does then."""
    given = np.zeros(nbytes + LINE_BYTES, np.uint8)
    begin = -given.ctypes.data % LINE_BYTES
    return given[begin : begin + nbytes]
