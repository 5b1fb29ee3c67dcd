"""How the bytes of a page are to be read, and whose they are: what a copy of a page carries with it.

A page that was copied out may be copied in wherever the layout is the same: into another store of this process, by a
later process, by another worker. Equal shapes do not suffice: the keys and values of the same tokens are others in a
model with other weights, so a sample of the weights is in the layout too; and others in their last bits when another
backend has computed them, so that its name is.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec
import torch
from torch import Tensor

from gpu.kv import KvStore
from gpu.models.config import ModelConfig

SAMPLED_ELEMENTS = 256
"""Of each weight: with hundreds of weights, no two models that were trained apart agree on all of them."""
_VERSION = 1
"""Of the order of bytes in a block."""


def sample_of(weights: dict[str, Tensor]) -> bytes:
    """16 bytes that depend on every weight's name and shape, and on elements spread evenly over it.

    Weights that differ only in elements between those are not told apart.
    """
    digest = blake2b(digest_size=16)
    for name in sorted(weights):
        weight = weights[name]
        digest.update(f"{name} {tuple(weight.shape)} {weight.dtype}\n".encode())
        every = max(1, weight.numel() // SAMPLED_ELEMENTS)
        elements = weight.reshape(-1)[::every].contiguous().cpu()
        digest.update(elements.view(torch.uint8).numpy().tobytes())
    return digest.digest()


def layout_of(config: ModelConfig, kv: KvStore, backend: str, sample: bytes) -> str:
    """A name for the bytes of `kv`'s pages: shape, element type, model, weights (`sample`) and backend."""
    _, _, _, page_size, kv_heads, head_dim = kv.data.shape
    digest = blake2b(digest_size=16)
    digest.update(msgspec.msgpack.encode((_VERSION, config, backend, kv.num_window_pages is not None)))
    digest.update(sample)
    dtype = str(kv.data.dtype).removeprefix("torch.")
    return f"{config.num_layers}x2x{page_size}x{kv_heads}x{head_dim} {dtype} {digest.hexdigest()}"
