"""Whether the compiled kernels compute, on this very machine, what plain PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pawl.gpu.backend import Backend, ForwardInputs
from pawl.gpu.devices import Device, download, upload
from pawl.gpu.dtypes import DTYPES, Dtype
from pawl.gpu.kv import KvStore
from pawl.gpu.models.decoder import TorchDecoder
from pawl.gpu.models.small import llama_config, random_weights
from pawl.gpu.select import native_backend
from pawl.lifecycle.step import Float32s

TINY = llama_config(vocab_size=97, hidden_size=64, intermediate_size=96, norm_epsilon=1e-5)
"""Sizes that are no multiple of a kernel's tiles, so that edges are computed too."""
ALLOWED = {"fp32": 1e-4, "bf16": 6e-2}
"""Largest difference, as a share of the largest logit: rounding in another order, over two layers."""
PAGE_SIZE = 16
LENGTHS = (1, 37, 5)
"""Tokens of each request: one that decodes, one over several pages, one inside a page."""


class Error(NamedTuple):
    """How far apart two backends are, as a share of the largest logit."""

    largest: float
    allowed: float


def native_error(dtype_name: str) -> Error:
    """The difference between compiled kernels and plain PyTorch in `fp32` or `bf16`. Raises BackendUnavailable."""
    dtype = DTYPES[dtype_name]
    native, reference = (_logits(make, dtype) for make in (native_backend(), TorchDecoder))
    largest = np.abs(native - reference).max() / np.abs(reference).max()
    # Not a number is no number to compare with: it would pass for "not larger than allowed".
    return Error(float(largest) if np.isfinite(largest) else float("inf"), ALLOWED[dtype_name])


def _logits(make: Callable[..., Backend], dtype: Dtype) -> Float32s:
    """Logits of the last token of each request after a prefill, float32 [3, vocab]."""
    store = KvStore(TINY, num_pages=8, page_size=PAGE_SIZE, dtype=dtype, device="cpu")
    backend = make(TINY, random_weights(TINY, dtype), store, threads=1)
    return download(backend.forward(_inputs(backend.device)))


def _inputs(device: Device) -> ForwardInputs:
    offsets = np.cumsum((0, *LENGTHS), dtype=np.int32)
    # Pages in no order, as after a while in a real server; 0 where a request has none.
    page_table = np.asarray([(7, 0, 0), (3, 1, 6), (5, 0, 0)], np.int32)
    positions = np.concatenate([np.arange(length, dtype=np.int32) for length in LENGTHS])
    return ForwardInputs(
        tokens=upload((positions * 7 + 3) % np.int32(TINY.vocab_size), device),
        positions=positions,
        slots=np.arange(len(LENGTHS), dtype=np.int32),
        starts=np.zeros(len(LENGTHS), np.int32),
        lengths=np.asarray(LENGTHS, np.int32),
        offsets=offsets,
        page_table=page_table,
        logit_rows=offsets[1:] - 1,
    )
