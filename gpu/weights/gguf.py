"""A reader of GGUF files: metadata and tensor table from a memory map, values only when they are asked for.

The layout is that of the GGUF specification, versions 2 and 3, little-endian:

    "GGUF"  version u32  num_tensors u64  num_metadata u64
    num_metadata * ( key string, type u32, value )
    num_tensors  * ( name string, num_dims u32, dims u64 [num_dims], type u32, offset u64 )
    padding to `general.alignment`
    tensor data, each tensor at its offset from here

A string is a u64 length and that many bytes. A vocabulary is an array of hundreds of thousands of them, so an array of
strings is only measured while the header is read and is decoded the first time it is used.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from pawl.gpu.dtypes import BFLOAT16, FLOAT32, floats_of
from pawl.gpu.weights.blocks import BlockFormat
from pawl.gpu.weights.strangers import reading

MAGIC = b"GGUF"
SUPPORTED_VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
MOST_ALIGNMENT = 1 << 20
MAX_DIMENSIONS = 4

_STRING = 8
_ARRAY = 9
_SCALARS: dict[int, tuple[struct.Struct, str]] = {
    0: (struct.Struct("<B"), "<u1"),
    1: (struct.Struct("<b"), "<i1"),
    2: (struct.Struct("<H"), "<u2"),
    3: (struct.Struct("<h"), "<i2"),
    4: (struct.Struct("<I"), "<u4"),
    5: (struct.Struct("<i"), "<i4"),
    6: (struct.Struct("<f"), "<f4"),
    7: (struct.Struct("<?"), "<?"),
    10: (struct.Struct("<Q"), "<u8"),
    11: (struct.Struct("<q"), "<i8"),
    12: (struct.Struct("<d"), "<f8"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


class GgufFormatError(Exception):
    """The file is not a GGUF file that this reader understands."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class StringArray(Sequence[str]):
    """An array of strings inside the memory map; decoded as a whole on first use.

    Raises UnicodeDecodeError on first use when the file's bytes are not UTF-8.
    """

    def __init__(self, buffer: mmap.mmap | bytes, offset: int, length: int) -> None:
        self._buffer = buffer
        self._offset = offset
        self._length = length
        self._decoded: list[str] | None = None

    def _all(self) -> list[str]:
        if self._decoded is None:
            unpack, buffer, offset = _U64.unpack_from, self._buffer, self._offset
            decoded = []
            for _ in range(self._length):
                start = offset + 8
                offset = start + unpack(buffer, offset)[0]
                decoded.append(buffer[start:offset].decode("utf-8"))
            self._decoded = decoded
        return self._decoded

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._all()[index]

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self._all() == list(other)

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True)
class GgufTensor:
    """One row of the tensor table."""

    name: str
    shape: tuple[int, ...]
    """Slowest dimension first, as numpy and torch have it (the file stores the reverse)."""
    quantization: int
    """A number of `gguf.GGMLQuantizationType`."""
    offset: int
    """Absolute, bytes from the start of the file."""


class GgufFile:
    """An open GGUF file. Arrays handed out are views of the map and keep it alive."""

    def __init__(
        self,
        path: Path,
        buffer: mmap.mmap,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, GgufTensor],
        data_offset: int,
    ) -> None:
        self.path = path
        self.metadata = metadata
        """Numbers, bools and str; arrays of numbers as numpy arrays, arrays of strings as `StringArray`."""
        self.tensors = tensors
        self.data_offset = data_offset
        self._buffer = buffer

    def header_digest(self) -> str:
        """SHA-256 of everything before the tensor data, hexadecimal."""
        return hashlib.sha256(memoryview(self._buffer)[: self.data_offset]).hexdigest()

    def blocks(self, name: str) -> NDArray[np.uint8]:
        """The tensor's quantised bytes, a view, uint8 [rows..., bytes of one row]. KeyError for an unknown name."""
        tensor = self.tensors[name]
        try:
            values_per_block, bytes_per_block = _sizes_of(tensor.quantization)
        except (ValueError, KeyError):
            reason = f"tensor {name} has the unknown quantisation type {tensor.quantization}"
            raise GgufFormatError(self.path, reason) from None
        width = tensor.shape[-1]
        if width % values_per_block:
            raise GgufFormatError(self.path, f"tensor {name}: row of {width} is not whole blocks of {values_per_block}")
        row_bytes = width // values_per_block * bytes_per_block
        rows = tensor.shape[:-1]
        num_bytes = math.prod(rows) * row_bytes
        if tensor.offset + num_bytes > len(self._buffer):
            raise GgufFormatError(self.path, f"tensor {name} ends beyond the file: is the download complete?")
        flat = np.frombuffer(self._buffer, np.uint8, num_bytes, tensor.offset)
        return flat.reshape(*rows, row_bytes)

    def dequantize(self, name: str) -> NDArray[np.float32]:
        """The tensor's values, float32, in the tensor's `shape`."""
        tensor = self.tensors[name]
        if (dtype := _NUMBERS.get(tensor.quantization)) is not None:
            return floats_of(self.blocks(name).view(dtype)).reshape(tensor.shape)
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        quantization = GGMLQuantizationType(tensor.quantization)
        try:
            values: NDArray[np.float32] = dequantize(self.blocks(name), quantization)
        except NotImplementedError:
            reason = f"tensor {name} is stored as {quantization.name}, for which there is no dequantisation"
            raise GgufFormatError(self.path, reason) from None
        return values.astype(np.float32, copy=False).reshape(tensor.shape)


_NUMBERS: dict[int, np.dtype[Any]] = {0: FLOAT32, 1: np.dtype(np.float16), 30: BFLOAT16}
"""Types of `gguf.GGMLQuantizationType` that are not quantised."""


def _sizes_of(kind: int) -> tuple[int, int]:
    """Numbers and bytes of a block. Raises ValueError or KeyError for a type that nobody knows."""
    if kind in _NUMBERS:
        return 1, _NUMBERS[kind].itemsize
    if kind in set(BlockFormat):
        return BlockFormat(kind).inputs, BlockFormat(kind).num_bytes
    # Its import takes a third of a start, so it waits for a type that is seen seldom.
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    inputs, num_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return inputs, num_bytes


class _Cursor:
    """Reads the header front to back."""

    def __init__(self, path: Path, buffer: mmap.mmap) -> None:
        self.path = path
        self.buffer = buffer
        self.offset = 0

    def u32(self) -> int:
        value: int = _U32.unpack_from(self.buffer, self.offset)[0]
        self.offset += 4
        return value

    def u64(self) -> int:
        value: int = _U64.unpack_from(self.buffer, self.offset)[0]
        self.offset += 8
        return value

    def take(self, num_bytes: int) -> int:
        """Move over `num_bytes`; where they start."""
        start = self.offset
        if num_bytes > len(self.buffer) - start:
            raise GgufFormatError(self.path, "the header ends beyond the file")
        self.offset = start + num_bytes
        return start

    def string(self) -> str:
        length = self.u64()
        start = self.take(length)
        return self.buffer[start : start + length].decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        packer, _ = self.scalar(kind)
        return packer.unpack_from(self.buffer, self.take(packer.size))[0]

    def scalar(self, kind: int) -> tuple[struct.Struct, str]:
        if kind not in _SCALARS:
            raise GgufFormatError(self.path, f"unknown metadata type {kind} at byte {self.offset}")
        return _SCALARS[kind]

    def array(self) -> Any:
        kind, length = self.u32(), self.u64()
        if kind == _STRING:
            start = self.offset
            self.skip_strings(length)
            return StringArray(self.buffer, start, length)
        if kind == _ARRAY:
            raise GgufFormatError(self.path, "arrays of arrays are not part of any model file known here")
        packer, dtype = self.scalar(kind)
        start = self.take(length * packer.size)
        return np.frombuffer(self.buffer, dtype, length, start)

    def skip_strings(self, length: int) -> None:
        # The hot loop of opening a file: 600,000 turns for a Gemma vocabulary, so locals and no method calls.
        unpack, buffer, offset = _U64.unpack_from, self.buffer, self.offset
        for _ in range(length):
            offset += 8 + unpack(buffer, offset)[0]
        self.offset = offset

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name, num_dims = self.string(), self.u32()
        if not 1 <= num_dims <= MAX_DIMENSIONS:
            raise GgufFormatError(self.path, f"tensor {name} has {num_dims} dimensions")
        dims = tuple(self.u64() for _ in range(num_dims))
        return name, dims[::-1], self.u32(), self.u64()


def _read(path: Path, buffer: mmap.mmap) -> GgufFile:
    cursor = _Cursor(path, buffer)
    if buffer[:4] != MAGIC:
        raise GgufFormatError(path, f"not a GGUF file: it starts with {buffer[:4]!r}")
    cursor.take(4)
    version = cursor.u32()
    if version not in SUPPORTED_VERSIONS:
        reason = f"GGUF version {version}; readable are little-endian versions {SUPPORTED_VERSIONS}"
        raise GgufFormatError(path, reason)
    num_tensors, num_metadata = cursor.u64(), cursor.u64()
    metadata: dict[str, Any] = {}
    for _ in range(num_metadata):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.u32())
    rows = [cursor.tensor() for _ in range(num_tensors)]
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= MOST_ALIGNMENT:
        raise GgufFormatError(path, f"alignment {str(alignment)[:60]}")
    data_offset = -(-cursor.offset // alignment) * alignment
    tensors = {name: GgufTensor(name, shape, kind, data_offset + offset) for name, shape, kind, offset in rows}
    return GgufFile(path, buffer, metadata, tensors, min(data_offset, len(buffer)))


def read_gguf(path: str | Path) -> GgufFile:
    """Open a GGUF file: header and tensor table are read, tensor data and string arrays are left in the map.

    Raises FileNotFoundError, or GgufFormatError when the file is not GGUF, is truncated, or is of an unknown version.
    """
    path = Path(path)
    with path.open("rb") as file:
        if path.stat().st_size < len(MAGIC) + 20:
            raise GgufFormatError(path, "not a GGUF file: too short for a header")
        buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with reading("the header", partial(GgufFormatError, path)):
        return _read(path, buffer)
