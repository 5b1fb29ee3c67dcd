"""Weights that wait in a file while their memory is somebody else's."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pawl.gpu.weights.blocks import BlockFormat, Blocks, HostWeight, Weight, on_host, stored_of
from pawl.gpu.weights.fingerprint import bytes_of


class KeptWeightsDamaged(Exception):
    """The file does not hold what was written."""

    def __init__(self, name: str) -> None:
        super().__init__(f"the file that released weights wait in is damaged at {name}")


class _Place(NamedTuple):
    offset: int
    num_bytes: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    format: BlockFormat | None
    """Of blocks, whose bytes these are."""
    digest: bytes
    """SHA-256 of the bytes."""


class KeptWeights(Mapping[str, HostWeight]):
    """By canonical name; each is read when it is asked for, and is what was written, to the bit. Any thread may read.

    The file has no name: nobody else can change it, and it ends with the process however that ends.
    """

    def __init__(self, weights: Mapping[str, Weight], folder: Path) -> None:
        """Write `weights` to a file in `folder`, one after the other, and to the disk: what the system still keeps of
        it in memory is free to be taken. Raises OSError, and then nothing is left of it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._places: dict[str, _Place] = {}
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - open as long as this lives
        try:
            self._write(weights)
        except BaseException:
            self._file.close()
            raise

    def _write(self, weights: Mapping[str, Weight]) -> None:
        offset = 0
        for name in weights:
            weight = on_host(weights[name])
            data = bytes_of(weight)
            self._file.write(data)
            digest = hashlib.sha256(data).digest()
            kind = weight.format if isinstance(weight, Blocks) else None
            stored = stored_of(weight)
            self._places[name] = _Place(offset, data.nbytes, stored.dtype, stored.shape, kind, digest)
            offset += data.nbytes
        self._file.flush()
        os.fsync(self._file.fileno())

    def __getitem__(self, name: str) -> HostWeight:
        """A copy. Raises KeptWeightsDamaged, or OSError."""
        place = self._places[name]
        data = bytearray(place.num_bytes)
        view, at = memoryview(data), 0
        while at < len(view) and (count := os.preadv(self._file.fileno(), [view[at:]], place.offset + at)):
            at += count
        if hashlib.sha256(data).digest() != place.digest:
            raise KeptWeightsDamaged(name)
        stored = np.frombuffer(data, place.dtype).reshape(place.shape)
        return stored if place.format is None else Blocks(stored, place.format)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
