"""What a stranger's file says of a model, read one key at a time, each with its type and its bounds.

A size is believed only once it is checked: whatever is made from it later (names of weights, tables, tensors) grows
with it. Whoever reads a key that is absent, of another type or out of bounds gets UnsupportedModel with one line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pawl.gpu.models.config import UnsupportedModel

LARGEST_SIZE = 1 << 24
"""Of a vocabulary or a width: more than any model has, little enough to multiply."""
_SHOWN = 60
"""Characters of a wrong value that a message repeats."""


class Facts:
    """The keys of one model, `values`, under `prefix` (GGUF). `file` names their place for messages."""

    def __init__(self, model: str, values: Mapping[str, Any], *, file: str = "config.json", prefix: str = "") -> None:
        self.model = model
        self._values = values
        self._file = file
        self._prefix = prefix

    def __contains__(self, key: str) -> bool:
        return self._values.get(self._prefix + key) is not None

    def refuse(self, reason: str) -> UnsupportedModel:
        """The error to raise where the model cannot be computed."""
        return UnsupportedModel(self.model, reason)

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it stands there, or `default`. Raises UnsupportedModel where neither is."""
        value = self._values.get(self._prefix + key)
        value = default if value is None else value
        if value is None:
            raise self.refuse(f"{self._file} does not say {self._prefix}{key}")
        return value

    def whole(self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST_SIZE) -> int:
        """A whole number from `least` to `most`. Raises UnsupportedModel."""
        value = self.raw(key, default)
        if not _is_number(value) or value != (number := int(value)) or not least <= number <= most:
            raise self._wrong(key, value, f"a whole number from {least} to {most}")
        return number

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number above 0. Raises UnsupportedModel."""
        value = self.raw(key, default)
        if not _is_number(value) or not float(value) > 0:
            raise self._wrong(key, value, "a number above 0")
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false where the file does not say. Raises UnsupportedModel."""
        value = self.raw(key, False)
        if not isinstance(value, bool | np.bool_):
            raise self._wrong(key, value, "true or false")
        return bool(value)

    def word(self, key: str, default: str | None = None) -> str:
        """A text. Raises UnsupportedModel."""
        value = self.raw(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a text")
        return value

    def sequence(self, key: str) -> Sequence[Any] | None:
        """A list; None where the file does not say. Raises UnsupportedModel."""
        if key not in self:
            return None
        value = self.raw(key)
        if not isinstance(value, list):
            raise self._wrong(key, value, "a list")
        return value

    def within(self, *keys: str) -> Facts:
        """The facts of an object inside this one, the first of `keys` that is there; of an empty one where none is.
        Raises UnsupportedModel."""
        key = next((key for key in keys if key in self), keys[0])
        value = self.raw(key, {})
        if not isinstance(value, dict):
            raise self._wrong(key, value, "an object")
        return Facts(self.model, value, file=f"{key} of {self._file}")

    def _wrong(self, key: str, value: Any, needed: str) -> UnsupportedModel:
        shown = repr(value)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
        return self.refuse(f"{self._prefix}{key} is {shown} in {self._file}, where {needed} is needed")


def _is_number(value: Any) -> bool:
    """Whether the value is a finite number; true and false are none."""
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.number):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False
