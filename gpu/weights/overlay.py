"""Weights of which some stand in the place of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

from pawl.gpu.weights.blocks import Weight


class Overlay(MutableMapping[str, Weight]):
    """Some weights, and for every other name those of `base`, each looked up when it is asked for."""

    def __init__(self, own: Mapping[str, Weight], base: Mapping[str, Weight]) -> None:
        self._own = own
        self._base = base
        self._names = dict.fromkeys(base)

    def __getitem__(self, name: str) -> Weight:
        if name not in self._names:
            raise KeyError(name)
        return self._own[name] if name in self._own else self._base[name]

    def __setitem__(self, name: str, weight: Weight) -> None:
        raise TypeError("weights are only taken from here")

    def __delitem__(self, name: str) -> None:
        del self._names[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
