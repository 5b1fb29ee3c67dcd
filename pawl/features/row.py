"""What a row says, and where the chance of a draw comes from."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

T = TypeVar("T")


class Source(Protocol):
    """Chance. The first of the options, the lower bound and False are the plain answers, to which a draw shrinks."""

    def pick(self, options: Sequence[T]) -> T:
        """One of them."""

    def within(self, low: int, high: int) -> int:
        """A number from `low` to `high`, both included; `low` where that is above `high`."""

    def chance(self, share: float) -> bool:
        """True in this share of all cases."""


class Seeded:
    """Chance from a seed: the same seed gives the same answers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, options: Sequence[T]) -> T:
        return self._random.choice(options)

    def within(self, low: int, high: int) -> int:
        return self._random.randint(low, max(low, high))

    def chance(self, share: float) -> bool:
        return self._random.random() < share


class Feature(NamedTuple):
    """One row."""

    name: str
    fields: tuple[str, ...]
    """Fields that it draws: of `Shape` for the server, of `Arrival` for a request."""
    draw: Callable[[Source, Mapping[str, Any]], dict[str, Any]]
    """(chance, what was drawn before it) -> values of these fields; left out are those that stay as they are by
    default."""
    properties: tuple[str, ...]
    """Names of the properties that judge it."""
    settings: tuple[str, ...] = ()
    """Fields of `ServerConfig`, or of the messages that carry a request, that set it."""
    help: str = ""
    """What the command line says of its setting."""
    choices: tuple[str, ...] = ()
    """Values of its first field, where it has names for them."""
    present: Callable[[Mapping[str, Any]], bool] | None = None
    """Whether it is in use, given all fields; None: when one of its fields is not what it is by default."""

    def labels(self, values: Mapping[str, Any], defaults: Mapping[str, Any]) -> Sequence[str]:
        """What of it is in use: `policy lpm` for one with choices, else its name or nothing."""
        if self.choices:
            value = values[self.fields[0]]
            return [f"{self.name} {value}"] if value in self.choices else []
        if self.present is not None:
            return [self.name] if self.present(values) else []
        return [self.name] if any(values[name] != defaults.get(name) for name in self.fields) else []

    @property
    def all_labels(self) -> Sequence[str]:
        """What `labels` can give."""
        return [f"{self.name} {choice}" for choice in self.choices] or [self.name]


def drawn(
    features: Sequence[Feature], source: Source, given: Mapping[str, Any], fixed: frozenset[str]
) -> dict[str, Any]:
    """Values for the fields of these features, beyond those `given`; a feature with a field in `fixed` is not drawn."""
    values = dict(given)
    for feature in features:
        if fixed.isdisjoint(feature.fields):
            values.update(feature.draw(source, values))
    return values
