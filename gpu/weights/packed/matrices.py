"""The quantised matrices of a folder, from tensors that come one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from typing import Any

from numpy.typing import NDArray

from pawl.gpu.dtypes import floats_of, name_of
from pawl.gpu.weights.packed.layouts import Tensors, unpacked
from pawl.gpu.weights.packed.scaled import Scaled
from pawl.gpu.weights.packed.scheme import Scheme

_OF_ACTIVATIONS = ("input_scale", "input_zero_point", "output_scale", "output_zero_point")


class Matrices:
    """Puts the tensors of each matrix together; every other one passes as it is."""

    def __init__(
        self, scheme: Scheme, names: Iterable[str], expected: Set[str], refusal: Callable[[str], Exception]
    ) -> None:
        """`names`: of all tensors of the folder; `expected`: of all weights of the model. What is wrong with the
        folder is raised as `refusal(reason)`."""
        self._scheme, self._expected, self._refusal = scheme, expected, refusal
        self._wanted: dict[str, set[str]] = {}
        """Of each quantised matrix the tensors, by the ends of their names."""
        for name in names:
            stem, _, part = name.rpartition(".")
            if part in scheme.required or part in scheme.optional:
                self._wanted.setdefault(stem, set()).add(part)
        for stem, parts in list(self._wanted.items()):
            if parts == {"weight"}:
                del self._wanted[stem]
            elif missing := set(scheme.required) - parts:
                raise refusal(f"{stem}: {', '.join(sorted(missing))} is missing ({scheme.method})")
        self._held: dict[str, dict[str, NDArray[Any]]] = {}

    def take(self, name: str, tensor: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any] | Scaled]]:
        """What the folder's next tensor completes, by the name that it would have in a folder that is not
        quantised."""
        stem, _, part = name.rpartition(".")
        wanted = self._wanted.get(stem)
        if wanted is None:
            if part == "weight" and tensor.dtype.itemsize == 1:
                raise self._refusal(f"{name} is {name_of(tensor.dtype)}, and {self._scheme.scale} is missing")
            yield name, tensor
        elif part in wanted:
            held = self._held.setdefault(stem, {})
            held[part] = tensor
            if held.keys() == wanted:
                yield f"{stem}.weight", unpacked(Tensors(stem, self._scheme, self._held.pop(stem), self._refusal))
        # Old writers gave every matrix a bias, of zeros where the model has none.
        elif part not in _OF_ACTIVATIONS and (part != "bias" or name in self._expected or floats_of(tensor).any()):
            yield name, tensor
