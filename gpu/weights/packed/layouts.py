"""The tensors of one quantised matrix, as checkpoints have them, unpacked. Words are int32, and their lowest bits come
first; 8 numbers of 4 bits or 4 of 8 stand in one.

    awq      qweight [inputs, outputs / 8]          qzeros [groups, outputs / 8]   scales [groups, outputs]
             the numbers of a word are those of the outputs 0, 2, 4, 6, 1, 3, 5, 7
    gptq     qweight [inputs / 8, outputs]          qzeros [groups, outputs / 8]   scales [groups, outputs]
             g_idx [inputs]: the group of each input
    packed   weight_packed [outputs, inputs / 8]    weight_shape: outputs, inputs  weight_scale [outputs, groups]
             weight_zero_point [outputs / 8, groups], or int8 [outputs, groups]    weight_g_idx [inputs]
             signed numbers, and half of their range more
    plain    weight int8 or float8 [outputs, inputs], weight_scale and weight_zero_point [outputs, groups]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.dtypes import floats_of, is_floating, name_of
from pawl.gpu.weights.packed.scaled import Scaled
from pawl.gpu.weights.packed.scheme import Scheme

_WORD_BITS = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_ZERO_POINT = "weight_zero_point"


class Tensors:
    """Those of a matrix, by the ends of their names. What is wrong with them is raised as `refusal(reason)`."""

    def __init__(
        self, name: str, scheme: Scheme, parts: Mapping[str, NDArray[Any]], refusal: Callable[[str], Exception]
    ) -> None:
        self.scheme = scheme
        self._name, self._parts, self._refusal = name, parts, refusal

    def refuse(self, reason: str) -> NoReturn:
        """Raises."""
        raise self._refusal(f"{self._name}: {reason} ({self.scheme.method})")

    def __contains__(self, part: str) -> bool:
        return part in self._parts

    def typed(self, part: str, *dtypes: str) -> NDArray[Any]:
        """The tensor, of one of these types."""
        found = self._parts[part]
        if name_of(found.dtype) not in dtypes:
            self.refuse(f"{part} is {name_of(found.dtype)}")
        return found

    def matrix(self, part: str, *dtypes: str) -> NDArray[Any]:
        """The same, of two dimensions."""
        found = self.typed(part, *dtypes)
        if found.ndim != 2:
            self.refuse(f"{part} has shape {list(found.shape)}")
        return found

    def shaped(self, part: str, found: NDArray[Any], *shape: int) -> NDArray[Any]:
        """`found`, if it has this shape."""
        if found.shape != shape:
            self.refuse(f"{part} has shape {list(found.shape)}, where {list(shape)} is needed")
        return found

    def scales(self, part: str) -> NDArray[np.float32]:
        """Floating-point numbers, finite ones."""
        found = self._parts[part]
        if not is_floating(found.dtype):
            self.refuse(f"{part} is {name_of(found.dtype)}")
        floats = floats_of(found)
        if not np.isfinite(floats).all():
            self.refuse(f"{part} has a number that is not finite")
        return floats

    def spread(self, part: str, found: NDArray[Any], outputs: int, inputs: int) -> NDArray[Any]:
        """[outputs, groups] of `found`, which has as many rows and columns as there are different ones, and may lack
        dimensions of 1."""
        each = self.scheme.outputs or max(1, outputs)
        rows, columns = -(-outputs // each), self.num_groups(inputs)
        if found.ndim < 2 and 1 in (rows, columns) and found.size == rows * columns:
            found = found.reshape(rows, columns)
        return np.repeat(self.shaped(part, found, rows, columns), each, 0)[:outputs]

    def num_groups(self, inputs: int) -> int:
        """Of so many inputs."""
        return -(-inputs // (self.scheme.inputs or max(1, inputs)))

    def groups(self, part: str, inputs: int) -> NDArray[np.intp]:
        """[inputs]: the group of each. -1 everywhere stands for no order of its own."""
        in_order = np.arange(inputs) // (self.scheme.inputs or max(1, inputs))
        if part not in self._parts:
            return in_order
        found, count = self.shaped(part, self._parts[part], inputs), self.num_groups(inputs)
        if found.dtype.kind != "i":
            self.refuse(f"{part} is {name_of(found.dtype)}")
        if (found == -1).all():
            return in_order
        if ((found < 0) | (found >= count)).any():
            self.refuse(f"{part} names groups from {found.min()} to {found.max()} of {count}")
        return found.astype(np.intp)

    def whole_shape(self, part: str) -> tuple[int, int]:
        """Two whole numbers."""
        found = self._parts[part]
        if found.dtype.kind != "i" or found.size != 2:
            self.refuse(f"{part} is {name_of(found.dtype)} of shape {list(found.shape)}")
        outputs, inputs = map(int, found.reshape(-1))
        return outputs, inputs


def unpacked(tensors: Tensors) -> Scaled:
    """The matrix. Raises what `tensors` refuses with."""
    return _LAYOUTS[tensors.scheme.layout](tensors)


def _awq(tensors: Tensors) -> Scaled:
    words = tensors.matrix("qweight", "int32")
    inputs, outputs = words.shape[0], words.shape[1] * len(_AWQ_ORDER)
    count = tensors.num_groups(inputs)
    zeros = tensors.shaped("qzeros", tensors.matrix("qzeros", "int32"), count, words.shape[1])
    scales = tensors.shaped("scales", tensors.scales("scales"), count, outputs)
    groups = tensors.groups("g_idx", inputs)
    return Scaled(_less(_interleaved(words), _interleaved(zeros), groups, 4), np.ascontiguousarray(scales.T), groups)


def _gptq(tensors: Tensors) -> Scaled:
    bits = tensors.scheme.bits
    each = _WORD_BITS // bits
    words = tensors.matrix("qweight", "int32")
    inputs, outputs = words.shape[0] * each, words.shape[1]
    count = tensors.num_groups(inputs)
    zeros = tensors.shaped("qzeros", tensors.matrix("qzeros", "int32"), count, -(-outputs // each)).view(np.uint32)
    if tensors.scheme.zeros_less_one:
        # One more for each, with what is carried: they were made by taking away the same from whole words.
        zeros = zeros + np.uint32(sum(1 << at for at in range(0, _WORD_BITS, bits)))
    scales = tensors.shaped("scales", tensors.scales("scales"), count, outputs)
    groups = tensors.groups("g_idx", inputs)
    points = _in_order(zeros, bits)[:, :outputs].T
    return Scaled(_less(_in_order(words.T, bits), points, groups, bits), np.ascontiguousarray(scales.T), groups)


def _packed(tensors: Tensors) -> Scaled:
    bits = tensors.scheme.bits
    each, half = _WORD_BITS // bits, 1 << (bits - 1)
    outputs, inputs = tensors.whole_shape("weight_shape")
    words = tensors.matrix("weight_packed", "int32")
    tensors.shaped("weight_packed", words, outputs, -(-inputs // each))
    groups = tensors.groups("weight_g_idx", inputs)
    scales = tensors.spread("weight_scale", tensors.scales("weight_scale"), outputs, inputs)
    points: NDArray[Any] = np.full(scales.shape, half, np.uint8)
    if _ZERO_POINT in tensors:
        points = tensors.matrix(_ZERO_POINT, "int32", "int8")
        if points.dtype == np.int32:
            tensors.shaped(_ZERO_POINT, points, -(-outputs // each), scales.shape[1])
            points = _in_order(points.T, bits)[:, :outputs].T
        else:
            points = (tensors.spread(_ZERO_POINT, points, outputs, inputs).astype(np.int16) + half).astype(np.uint8)
    return Scaled(_less(_in_order(words, bits)[:, :inputs], points, groups, bits), scales, groups)


def _plain(tensors: Tensors) -> Scaled:
    scheme = tensors.scheme
    values = tensors.matrix("weight", "float8_e4m3fn" if scheme.floating else "int8")
    outputs, inputs = values.shape
    groups = tensors.groups("weight_g_idx", inputs)
    scales = tensors.spread(scheme.scale, tensors.scales(scheme.scale), outputs, inputs)
    if _ZERO_POINT in tensors and not scheme.floating:
        points = tensors.spread(_ZERO_POINT, tensors.typed(_ZERO_POINT, "int8"), outputs, inputs)
        values = values.astype(np.int16) - points.take(groups, 1)
    return Scaled(values, scales, groups)


_LAYOUTS = {"awq": _awq, "gptq": _gptq, "packed": _packed, "plain": _plain}


def _in_order(words: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """[n, m] words as [n, m * 32 / bits] numbers."""
    octets = np.ascontiguousarray(words).view(np.uint8).reshape(len(words), -1)
    if bits == 8:
        return octets
    found = np.empty((*octets.shape, 2), np.uint8)
    np.bitwise_and(octets, 15, out=found[..., 0])
    np.right_shift(octets, 4, out=found[..., 1])
    return found.reshape(len(words), -1)


def _interleaved(words: NDArray[Any]) -> NDArray[np.uint8]:
    """[n, m] words as [m * 8, n] numbers, in the order of outputs."""
    turned = np.ascontiguousarray(words.T).view(np.uint32)
    found = np.empty((len(turned), len(_AWQ_ORDER), len(words)), np.uint8)
    for place, output in enumerate(_AWQ_ORDER):
        found[:, output] = turned >> np.uint32(4 * place) & np.uint32(15)
    return found.reshape(-1, len(words))


def _less(values: NDArray[np.uint8], points: NDArray[np.uint8], groups: NDArray[np.intp], bits: int) -> NDArray[Any]:
    """Numbers [outputs, inputs] less the zero points [outputs, groups]."""
    points = points.take(groups, 1)
    # What 4 bits differ by has room in a byte, however that is read.
    return (values - points).view(np.int8) if bits == 4 else values.astype(np.int16) - points
