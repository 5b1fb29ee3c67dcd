"""The weights of a ghost: two numbers, which change all that it says. They come by name, or as tensors, one or both."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from pawl.gpu.step_runner import WeightsRefused
from pawl.gpu.weights.shared_memory import read_segment
from pawl.lifecycle.weight_source import FromBytes, FromDisk, FromMemory, FromSharedMemory, FromTensors, WeightSource

_WORD = (1 << 64) - 1
_MOST_BYTES = 4096
"""Of a file of both tensors."""


class GhostWeights(NamedTuple):
    """64 bits each."""

    first: int = 0
    second: int = 0

    @classmethod
    def named(cls, source: str) -> Self:
        """`ghost` has zeros, `ghost:NAME` a first number, `ghost:NAME+OTHER` both. Raises ValueError for anything
        else."""
        kind, _, name = source.partition(":")
        if kind != "ghost" or source == "ghost:":
            raise ValueError(f"a ghost's weights are called ghost, or ghost:NAME, and not {source!r}")
        first, _, second = name.partition("+")
        return cls(_number(first), _number(second))

    @property
    def salt(self) -> int:
        """Where a ghost of these weights begins to count. Which number is which matters."""
        return (self.first + 3 * self.second) & _WORD

    @property
    def tensors(self) -> dict[str, Any]:
        """uint64 [1] each, by name."""
        return {name: np.array([word], np.uint64) for name, word in zip(NAMES, self, strict=True)}

    def file(self, *names: str) -> bytes:
        """A safetensors file of these of its tensors; of all, where none is named."""
        return save({name: self.tensors[name] for name in names or NAMES})

    def changed(self, tensors: Mapping[str, Any]) -> GhostWeights:
        """With those of `tensors` in their places. Raises WeightsRefused."""
        if not tensors:
            raise WeightsRefused("no tensors were sent")
        for name, tensor in tensors.items():
            check(name, str(tensor.dtype), tensor.shape)
        words = {
            field: int(tensors[name][0]) for field, name in zip(self._fields, NAMES, strict=True) if name in tensors
        }
        return self._replace(**words)

    @property
    def fingerprint(self) -> str:
        """Of weights that came as tensors."""
        return f"ghost {self.first:016x} {self.second:016x}"


NAMES = ("ghost.first", "ghost.second")


def check(name: str, dtype: str, shape: tuple[int, ...]) -> None:
    """Raises WeightsRefused where a ghost has no such weight."""
    if name not in NAMES:
        raise WeightsRefused(f"a ghost has no weight {name[:60]!r}; it has {' and '.join(NAMES)}")
    if dtype != "uint64" or shape != (1,):
        raise WeightsRefused(f"{name} is {dtype} {shape}, not uint64 (1,)")


class GhostUpdates:
    """As `pawl.gpu.updates.Updates`, of a ghost."""

    def __init__(self) -> None:
        self.serving = GhostWeights()
        self._sent: tuple[int, dict[str, Any]] = 0, {}
        self._staged: tuple[int, GhostWeights] | None = None

    def stage(self, ticket: int, source: WeightSource, last: bool) -> str:
        """See `StepRunner.stage`."""
        (sender, kept), self._sent, self._staged = self._sent, (0, {}), None
        if isinstance(source, FromDisk):
            self._staged = ticket, _on_disk(source.path)
            return source.path
        sent = (kept if sender == ticket else {}) | received(source)
        weights = self.serving.changed(sent)
        if not last:
            self._sent = ticket, sent
            return ""
        self._staged = ticket, weights
        return weights.fingerprint

    def take(self, ticket: int) -> GhostWeights:
        """What is staged under this ticket, once; it serves from now on. Raises WeightsRefused."""
        if self._staged is None or self._staged[0] != ticket:
            raise WeightsRefused(f"nothing is staged for update {ticket}")
        self.serving, self._staged = self._staged[1], None
        return self.serving


def received(source: FromBytes | FromSharedMemory | FromTensors | FromMemory) -> dict[str, Any]:
    """The tensors that were sent. Raises WeightsRefused."""
    match source:
        case FromTensors(tensors):
            return dict(tensors)
        case FromMemory(specs, offsets, memory):
            places = zip(specs, offsets, strict=False)
            return {spec.name: np.frombuffer(memory, spec.dtype, 1, offset) for spec, offset in places}
        case FromBytes(data):
            pass
        case FromSharedMemory(name, size):
            data = read_segment(name, size, _MOST_BYTES)
    try:
        return load(data)
    except (SafetensorError, KeyError, ValueError) as error:  # KeyError: a dtype that numpy does not have
        raise WeightsRefused(f"damaged safetensors: {' '.join(str(error).split())}") from error


def _on_disk(path: str) -> GhostWeights:
    try:
        return GhostWeights.named(path)
    except ValueError as error:
        raise WeightsRefused(str(error)) from error


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) if name else 0
