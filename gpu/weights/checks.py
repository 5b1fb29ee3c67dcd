"""Do the tensors of a checkpoint fit the model it claims to be?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


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
