"""What a backend asks of the compiled kernels, written down, to be asked again where there is no Python.

`native_calls.cpp` reads it. All numbers are little-endian, int64 but in the structures, which are `pawl::Shape` and
`pawl::Inputs` as they lie in memory.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from pawl.gpu.native.bindings import Inputs, Library, Shape


class Calls:
    """The kernels, for one decoder that has no adapters and no pages of windows."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self._shape = b""
        self._weights: list[bytes] = []
        self._steps: list[bytes] = []
        self._answers: list[bytes] = []
        self._pages = (0, 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)

    @property
    def written(self) -> bytes:
        """The calls so far."""
        return b"".join((self._shape, _number(len(self._weights)), *self._weights, *self._steps))

    @property
    def answers(self) -> bytes:
        """What the steps gave, and what is in the pages now."""
        return b"".join((*self._answers, ctypes.string_at(*self._pages)))

    def create(self, by_reference: Any, decoder: Any) -> bytes | None:
        """See `Library.create`."""
        shape: Shape = by_reference._obj
        sizes = {
            "windows": 4 * shape.num_layers,
            "rope_of_layer": 4 * shape.num_layers,
            "expert_layers": 4 * shape.num_layers,
            "inverse_frequencies": 2 * shape.num_ropes * shape.head_dim,
            "expert_parts": 4 * shape.num_layers * shape.num_experts,
        }
        assert not shape.window_kv, "pages of windows are not written down"
        size = 2 * shape.num_layers * shape.num_pages * shape.page_size * shape.num_kv_heads * shape.head_dim
        size *= 2 if shape.bf16 else 4
        self._pages = shape.kv, size
        self._shape = _structure(shape, sizes, {"kv": size})
        return self._library.create(by_reference, decoder)

    def load(self, decoder: Any, layer: int, name: bytes, kind: int, data: int, count: int) -> bytes | None:
        """See `Library.load`."""
        bf16 = bool(Shape.from_buffer_copy(self._shape, 8).bf16)
        wide = 1 if kind >= 0 else 4 if b"norm" in name or not bf16 else 2
        numbers = b"".join(map(_number, (layer, kind, count)))
        self._weights.append(numbers + _bytes(name + b"\0") + _bytes(ctypes.string_at(data, count * wide)))
        return self._library.load(decoder, layer, name, kind, data, count)

    def forward(self, decoder: Any, by_reference: Any) -> bytes | None:
        """See `Library.forward`."""
        inputs: Inputs = by_reference._obj
        shape = Shape.from_buffer_copy(self._shape, 8)
        sizes = {
            "tokens": 4 * inputs.num_tokens,
            "positions": 4 * inputs.num_tokens,
            "slots": 4 * inputs.num_segments,
            "starts": 4 * inputs.num_segments,
            "lengths": 4 * inputs.num_segments,
            "offsets": 4 * inputs.num_segments + 4,
            "page_table": 4 * inputs.num_slots * inputs.pages_per_slot,
            "logit_rows": 4 * inputs.num_logits,
        }
        outputs = {
            "logits": 4 * inputs.num_logits * shape.vocab_size,
            "greedy": 4 * inputs.num_logits,
        }
        self._steps.append(_structure(inputs, sizes, outputs))
        message = self._library.forward(decoder, by_reference)
        self._answers += [ctypes.string_at(at, size) for name, size in outputs.items() if (at := getattr(inputs, name))]
        return message


def _structure(structure: ctypes.Structure, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> bytes:
    """The structure, and the arrays of so many bytes behind those of its pointers that are not null."""
    copy = type(structure).from_buffer_copy(structure)
    arrays = []
    for name, size in (*inputs.items(), *outputs.items()):
        if at := getattr(structure, name):
            field = getattr(type(structure), name)
            arrays.append(_number(field.offset) + _number(name in outputs) + _bytes(ctypes.string_at(at, size)))
        setattr(copy, name, None)
    return b"".join((_bytes(bytes(copy)), _number(len(arrays)), *arrays))


def _number(value: int) -> bytes:
    return int(value).to_bytes(8, "little", signed=True)


def _bytes(data: bytes) -> bytes:
    return _number(len(data)) + data
