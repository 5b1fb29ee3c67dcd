"""New weights for a model that serves: read, verified and packed beside the old ones, until the worker takes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pawl.gpu.backend import Backend
from pawl.gpu.devices import is_out_of_memory
from pawl.gpu.dtypes import Dtype, dtype_of
from pawl.gpu.heap import give_back_memory
from pawl.gpu.models.config import ModelConfig, UnsupportedModel, weight_shapes
from pawl.gpu.parallel.rank import Rank
from pawl.gpu.parallel.shard import Shard, keeper, named_own, part_of
from pawl.gpu.step_runner import WeightsRefused
from pawl.gpu.weights.blocks import Weight, Weights
from pawl.gpu.weights.checks import WeightMismatch
from pawl.gpu.weights.fingerprint import Samples, fingerprint_of_change
from pawl.gpu.weights.finite import NotFinite
from pawl.gpu.weights.gguf import GgufFormatError
from pawl.gpu.weights.locate import ModelNotFound
from pawl.gpu.weights.overlay import Overlay
from pawl.gpu.weights.safetensors import FolderError, as_stored, parsed, sent_parts, sent_weights
from pawl.gpu.weights.shared_memory import read_segment
from pawl.gpu.weights.source import load_blocks, load_weights, resolve_source
from pawl.lifecycle.weight_group import TensorSpec
from pawl.lifecycle.weight_source import FromBytes, FromDisk, FromMemory, FromSharedMemory, FromTensors, WeightSource

_OF_FILES = (ModelNotFound, FolderError, GgufFormatError, NotFinite, UnsupportedModel, WeightMismatch)
_REFUSALS = (*_OF_FILES, OSError, MemoryError)
_KINDS = {"safetensors": "huggingface", "gguf": "gguf"}
_OF_THE_ENGINE = frozenset({"max_position"})
"""Fields of a configuration by which the engine was sized, and which change no computation."""
_WIDEST, _HEADER = 8, 1 << 24
"""Bytes of a number at the most, and of the names beside the numbers."""
_CLOSE = 1e-6
"""GGUF files hold numbers in single precision."""


class Version(NamedTuple):
    """Weights that can compute."""

    backend: Backend
    fingerprint: str


class Updates:
    """What is staged for one runner. One thread stages, another takes."""

    def __init__(
        self,
        config: ModelConfig,
        dtype: Dtype,
        make: Callable[..., Backend],
        serving: Version,
        rank: Rank | None = None,
        *,
        in_blocks: bool = False,
    ) -> None:
        """`make(weights=…, rank=…)` packs weights for the runner's store; `serving` is what computes now. Of the model
        of `config` a `rank` keeps its shard. `in_blocks`: quantised matrices of files stay as they are."""
        self._config = config
        self._dtype = dtype_of(dtype)
        self._make = make
        self.rank = rank
        self._in_blocks = in_blocks
        self.serving = serving
        self._sent: tuple[int, dict[str, NDArray[Any]]] = 0, {}
        """Ticket and parts of an update whose last part is still to come."""
        self._staged: tuple[int, Version] | None = None
        self._most_bytes = sum(map(math.prod, weight_shapes(config).values())) * _WIDEST + _HEADER

    def stage(self, ticket: int, source: WeightSource, *, last: bool = True) -> str:
        """See `StepRunner.stage`. Two copies of the weights are in memory until one is dropped. Raises
        WeightsRefused."""
        (sender, kept), self._sent, self._staged = self._sent, (0, {}), None
        try:
            weights: Weights
            if isinstance(source, FromDisk):
                samples = Samples()
                weights = self._read(source, samples)
                fingerprint = samples.fingerprint(self._config)
            else:
                sent = (kept if sender == ticket else {}) | self._received(source)
                if not last:
                    self._sent = ticket, sent
                    return ""
                fingerprint = fingerprint_of_change(self.serving.fingerprint, sent)
                weights = Overlay(part_of(self._shard, sent), self.serving.backend.named_weights())
            self._staged = ticket, Version(self._make(weights=weights, rank=self.rank), fingerprint)
        except (*_REFUSALS, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            raise WeightsRefused(" ".join(str(error).split()) or type(error).__name__) from error
        del weights
        give_back_memory()
        return fingerprint

    @property
    def _shard(self) -> Shard | None:
        return None if self.rank is None else self.rank.shard

    def placed(self, shard: Shard) -> None:
        """The rank's experts are those of this shard from now on."""
        assert self.rank is not None, "experts are shared out among ranks"
        self.rank = self.rank._replace(shard=shard)

    def serves(self, version: Version) -> None:
        """It computes from now on."""
        self.serving = version
        give_back_memory()  # of the one before

    def named_weights(self) -> Mapping[str, Weight]:
        """See `StepRunner.named_weights`."""
        weights = self.serving.backend.named_weights()
        if self._shard is not None:
            weights = _Renamed(weights, {self._shard.whole_name(name): name for name in weights})
        return as_stored(weights, self._config)

    def _read(self, source: FromDisk, samples: Samples) -> Weights:
        found = resolve_source(source.path)
        if _KINDS.get(source.load_format, found.kind) != found.kind:
            raise WeightsRefused(f"{source.path} is not {source.load_format}")
        differing = differences(self._config, found.config)
        if differing:
            raise WeightsRefused(f"{source.path} is another model than the one that is served: {differing}")
        if self._in_blocks and found.has_blocks:
            blocks = load_blocks(found, self._dtype)
            for name, weight in blocks.items():
                samples.add(name, weight)
            return blocks
        weights = load_weights(found, self._dtype, mapped=False, keep=keeper(self._shard, samples))
        return named_own(self._shard, weights)

    def _received(self, source: FromBytes | FromSharedMemory | FromTensors | FromMemory) -> dict[str, NDArray[Any]]:
        match source:
            case FromBytes(data):
                tensors: Mapping[str, Any] = parsed(data)
            case FromSharedMemory(name, size):
                tensors = parsed(read_segment(name, size, self._most_bytes))
            case FromTensors(tensors):
                pass
            case FromMemory():
                tensors = in_memory(source)
        if not tensors:
            raise WeightsRefused("no tensors were sent")
        return sent_weights(tensors, self._config, self._dtype)

    def expect(self, specs: Sequence[TensorSpec]) -> None:
        """See `StepRunner.expect`."""
        # Of tensors whose names the model skips, any shape would fit.
        if sum(spec.num_bytes for spec in specs) > self._most_bytes:
            raise WeightsRefused(f"all weights of this model have at most {self._most_bytes} bytes")
        try:
            # Without memory: each is one number, as often as the shape says.
            kinds = {spec.name: np.zeros((), dtype_of(spec.dtype)) for spec in specs}
            sent_parts({spec.name: np.broadcast_to(kinds[spec.name], spec.shape) for spec in specs}, self._config)
        except (*_REFUSALS, ValueError, IndexError, TypeError) as error:  # what no tensor of the model can be cut to
            raise WeightsRefused(" ".join(str(error).split()) or type(error).__name__) from error

    def again(self, version: Version) -> Version:
        """The same weights, laid out anew."""
        weights = Overlay({}, version.backend.named_weights())
        return Version(self._make(weights=weights, rank=self.rank), version.fingerprint)

    def take(self, ticket: int) -> Version:
        """What is staged under this ticket, once. Raises WeightsRefused."""
        staged, self._staged = self._staged, None
        if staged is None or staged[0] != ticket:
            raise WeightsRefused(f"nothing is staged for update {ticket}")
        return staged[1]


class _Renamed(Mapping[str, Weight]):
    """Weights under other names. Each is looked at when it is asked for: backends make copies then."""

    def __init__(self, weights: Mapping[str, Weight], names: Mapping[str, str]) -> None:
        """`names`: the other name -> that of the weight."""
        self._weights, self._names = weights, names

    def __getitem__(self, name: str) -> Weight:
        return self._weights[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def in_memory(source: FromMemory) -> dict[str, NDArray[Any]]:
    """Views of what was received."""
    return {
        spec.name: np.ndarray(spec.shape, dtype_of(spec.dtype), source.memory, offset)
        for spec, offset in zip(source.specs, source.offsets, strict=False)
    }


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
