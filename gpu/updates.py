"""New weights for a model that serves: read, verified and packed beside the old ones, until the worker takes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import torch

from pawl.gpu.backend import Backend
from pawl.gpu.heap import give_back_memory
from pawl.gpu.models.config import ModelConfig, UnsupportedModel
from pawl.gpu.step_runner import WeightsRefused
from pawl.gpu.weights.checks import WeightMismatch
from pawl.gpu.weights.fingerprint import weights_fingerprint
from pawl.gpu.weights.gguf import GgufFormatError
from pawl.gpu.weights.locate import ModelNotFound
from pawl.gpu.weights.safetensors import FolderError
from pawl.gpu.weights.source import load_weights, resolve_source

_REFUSALS = (ModelNotFound, FolderError, GgufFormatError, UnsupportedModel, WeightMismatch, OSError, MemoryError)
_KINDS = {"safetensors": "huggingface", "gguf": "gguf"}
_OF_THE_ENGINE = frozenset({"max_position"})
"""Fields of a configuration by which the engine was sized, and which change no computation."""
_CLOSE = 1e-6
"""GGUF files hold numbers in single precision."""


class Updates:
    """What is staged for one runner. One thread stages, another takes."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, make: Callable[..., Backend]) -> None:
        """`make(weights=…)` packs weights for the runner's store."""
        self._config = config
        self._dtype = dtype
        self._make = make
        self._staged: tuple[int, Backend] | None = None

    def stage(self, ticket: int, source: str, load_format: str) -> str:
        """See `StepRunner.stage`. Two copies of the weights are in memory until one is dropped. Raises
        WeightsRefused."""
        self._staged = None
        give_back_memory()  # of the version before the one that serves
        try:
            found = resolve_source(source)
            if _KINDS.get(load_format, found.kind) != found.kind:
                raise WeightsRefused(f"{source} is not {load_format}")
            differing = differences(self._config, found.config)
            if differing:
                raise WeightsRefused(f"{source} is another model than the one that is served: {differing}")
            weights = load_weights(found, self._dtype, mapped=False)
            fingerprint = weights_fingerprint(self._config, weights)
            self._staged = ticket, self._make(weights=weights)
        except _REFUSALS as error:
            raise WeightsRefused(" ".join(str(error).split()) or type(error).__name__) from error
        del weights
        give_back_memory()
        return fingerprint

    def take(self, ticket: int) -> Backend:
        """What is staged under this ticket, once. Raises WeightsRefused."""
        staged, self._staged = self._staged, None
        if staged is None or staged[0] != ticket:
            raise WeightsRefused(f"nothing is staged for update {ticket}")
        return staged[1]


def differences(served: ModelConfig, new: ModelConfig) -> str:
    """In what another model computes otherwise, in words; "" where it does not."""
    names = [field.name for field in msgspec.structs.fields(served) if field.name not in _OF_THE_ENGINE]
    pairs = ((name, getattr(served, name), getattr(new, name)) for name in names)
    words = [f"{name} is {found!s:.40}, not {wanted!s:.40}" for name, wanted, found in pairs if not same(wanted, found)]
    return "; ".join(words[:3])


def same(one: Any, other: Any) -> bool:
    """Whether two values of a configuration are equal, as far as single precision tells."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_CLOSE)
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, msgspec.Struct) and type(one) is type(other):
        return all(same(getattr(one, name), getattr(other, name)) for name in one.__struct_fields__)
    return bool(one == other)
