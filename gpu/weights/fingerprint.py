"""A short name for the weights that are served: what was computed with others must not be taken for theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from pawl.gpu.dtypes import name_of
from pawl.gpu.weights.blocks import Blocks, Weight, stored_of

_SAMPLES = 16
"""Elements looked at in each tensor. Training moves nearly all of a tensor's elements, if it moves any."""
_DIGITS = 16


def weights_fingerprint(config: object, weights: Mapping[str, Weight]) -> str:
    """16 hexadecimal digits, the same at every start with the same weights.

    Made of the model's configuration (keys depend on its rotary frequencies as well), of every tensor's name, dtype and
    shape, and of elements spread evenly over each tensor, the first and the last among them. Milliseconds, as
    little of a mapped file is read. It tells versions of a model apart; it does not resist somebody who forges one.
    """
    samples = Samples()
    for name, tensor in weights.items():
        samples.add(name, tensor)
    return samples.fingerprint(config)


class Samples:
    """What `weights_fingerprint` looks at, for whoever has one weight after the other."""

    def __init__(self) -> None:
        self._of: dict[str, bytes] = {}

    def add(self, name: str, weight: Weight) -> None:
        """A weight of the whole model."""
        flat = stored_of(weight).reshape(-1)
        places = np.linspace(0, len(flat) - 1, min(_SAMPLES, len(flat))).astype(np.intp)
        self._of[name] = _named(name, weight) + flat[places].tobytes()

    def fingerprint(self, config: object) -> str:
        """See `weights_fingerprint`."""
        digest = hashlib.sha256(repr(config).encode())
        for name in sorted(self._of):
            digest.update(self._of[name])
        return digest.hexdigest()[:_DIGITS]


def fingerprint_of_change(before: str, sent: Mapping[str, Weight]) -> str:
    """16 hexadecimal digits of the weights that come of those of fingerprint `before` when `sent` replace some. Made of
    every byte that was sent: a change may be small."""
    digest = hashlib.sha256(before.encode())
    for name in sorted(sent):
        digest.update(_named(name, sent[name]))
        digest.update(bytes_of(sent[name]))
    return digest.hexdigest()[:_DIGITS]


def bytes_of(weight: Weight) -> memoryview:
    """All bytes of a weight, on the host."""
    return np.ascontiguousarray(stored_of(weight)).reshape(-1).view(np.uint8).data


def _named(name: str, weight: Weight) -> bytes:
    # Numbers as PyTorch prints their type, so that weights keep the fingerprints that they had.
    kind = weight.dtype if isinstance(weight, Blocks) else f"torch.{name_of(weight.dtype)}"
    return f"{name} {kind} {tuple(weight.shape)}\n".encode()
