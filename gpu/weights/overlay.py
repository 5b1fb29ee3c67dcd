"""Weights of which some stand in the place of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping

from torch import Tensor


class Overlay(MutableMapping[str, Tensor]):
    """Some weights, and for every other name those of `base`, each looked up when it is asked for."""

    def __init__(self, own: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> None:
        self._own = own
        self._base = base
        self._names = dict.fromkeys(base)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._own[name] if name in self._own else self._base[name]

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        raise TypeError("weights are only taken from here")

    def __delitem__(self, name: str) -> None:
        del self._names[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
