"""Do the tensors of a checkpoint fit the model it claims to be, and what is kept of them?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from pawl.gpu.weights.finite import check_finite

Keep: TypeAlias = Callable[[str, NDArray[Any]], NDArray[Any] | None]
"""Takes each weight of a whole model, by its canonical name, and gives what is kept of it; None: nothing. What it does
not keep is not in memory with the rest."""


def all_of_it(name: str, weight: NDArray[Any]) -> NDArray[Any] | None:
    """The `Keep` of whoever has the whole model."""
    return weight


class WeightMismatch(Exception):
    """The checkpoint's tensors are not those of its configuration."""

    def __init__(self, path: Path | str, missing: list[str], unexpected: list[str], misshapen: list[str]) -> None:
        parts = [
            f"{word} {', '.join(names[:4])}{f' and {len(names) - 4} more' if len(names) > 4 else ''}"
            for word, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
            if names
        ]
        super().__init__(f"{path}: weights do not fit the configuration: {'; '.join(parts)}")
        self.path = path
        self.missing = missing
        self.unexpected = unexpected
        self.misshapen = misshapen


def is_norm(name: str) -> bool:
    """Whether a canonical name is a norm's weight (those stay float32 in every model dtype)."""
    return name.endswith("norm.weight")


def check_names(
    path: Path | str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises WeightMismatch unless `found` has exactly the names and shapes of `expected`."""
    missing = sorted(expected.keys() - found.keys())
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = [
        f"{name} {tuple(found[name])} for {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    if missing or unexpected or misshapen:
        raise WeightMismatch(path, missing, unexpected, misshapen)


class Kept:
    """The weights of a model as they come, or the part of each that somebody keeps."""

    def __init__(self, path: Path | str, expected: Mapping[str, tuple[int, ...]], keep: Keep) -> None:
        """They come from `path`."""
        self._path, self._expected, self._keep = path, expected, keep
        self._found: dict[str, tuple[int, ...]] = {}
        self._weights: dict[str, NDArray[Any]] = {}

    @property
    def share(self) -> float:
        """Of the weights, those that have come."""
        return len(self._found) / len(self._expected)

    def take(self, weights: Mapping[str, NDArray[Any]]) -> None:
        """Some have come, whole, by their canonical names. What the model has not is never asked about. Raises
        NotFinite for what is kept and cannot be computed with."""
        for name, weight in weights.items():
            self._found[name] = shape = weight.shape
            part = self._keep(name, weight) if self._expected.get(name) == shape else None
            if part is not None:
                check_finite(self._path, {name: part})
                self._weights[name] = part

    def complete(self) -> dict[str, NDArray[Any]]:
        """What was kept. Raises WeightMismatch unless exactly the model's weights have come."""
        check_names(self._path, self._expected, self._found)
        return self._weights
