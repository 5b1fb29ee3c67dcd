"""Adapters as the compiled kernels read them (see `adapter.h`)."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.adapters.low_rank import PRODUCTS, Adapter, PackedAdapter
from pawl.gpu.backend import RefusedInputs
from pawl.gpu.dtypes import array_of, converted
from pawl.gpu.native.bindings import Library
from pawl.gpu.step_runner import AdapterRefused


class NativeAdapter:
    """`PackedAdapter` in panels, for every decoder of one shape and element type."""

    def __init__(self, library: Library, decoder: ctypes.c_void_p, adapter: Adapter, dtype: np.dtype[Any]) -> None:
        """Raises AdapterRefused where there is no memory for it."""
        handle = ctypes.c_void_p()
        _check(library.make_adapter(decoder, ctypes.byref(handle)))
        self.handle = handle
        weakref.finalize(self, library.destroy_adapter, handle).atexit = False  # as the decoder's
        self.num_bytes = 0
        for index, layer in enumerate(adapter.layers):
            for number, product in enumerate(PRODUCTS):
                if (low := layer.get(product)) is not None:
                    parts = [np.ascontiguousarray(converted(array_of(part), dtype)) for part in low]
                    self.num_bytes += sum(part.nbytes for part in parts)
                    pointers = [part.ctypes.data for part in parts]
                    _check(library.load_adapter(handle, index, number, len(low.shrink), *pointers))


def handles(adapters: Sequence[PackedAdapter | None]) -> NDArray[Any]:
    """The addresses of a step's adapters, 0 for none, uint64 [s]. Raises RefusedInputs for one of another backend."""
    found = np.zeros(len(adapters), np.uint64)
    for segment, adapter in enumerate(adapters):
        if isinstance(adapter, NativeAdapter):
            found[segment] = adapter.handle.value or 0
        elif adapter is not None:
            raise RefusedInputs("an adapter that was packed for another backend")
    return found


def _check(message: bytes | None) -> None:
    if message is not None:
        raise AdapterRefused(message.decode())
