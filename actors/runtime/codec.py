"""Messages as frames of bytes, for wires between processes. Nothing is unpickled.

    frame 0     checksum (crc32, 4 bytes), how far it goes (a byte: 0 to the end, 1 to that of this frame), and the
                message in msgpack, with its type tag
    frame 1 …   the bytes of its arrays, in the order in which they occur; never copied into msgpack, nor out of it

An array in the message is an extension that says dtype and shape. What comes from a wire is trusted in nothing: it is a
message of a type that its receiver accepts, whole and undamaged, or `Malformed`.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

Frame: TypeAlias = bytes | bytearray | memoryview

_ARRAY = 1
"""Code of the extension."""
_CHECKSUM = struct.Struct("<I")
_WHOLE, _SEALED = b"\0", b"\1"
_DTYPES = {
    np.dtype(name).str: np.dtype(name)
    for name in ("?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8")
}
"""What arrays may hold: numbers as they lie in memory, and no objects."""
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_write_shape = msgspec.msgpack.Encoder().encode
_read_shape = msgspec.msgpack.Decoder(tuple[str, tuple[int, ...]]).decode


class Malformed(ValueError):
    """Frames that are no message: damaged, cut short, or of a type that the receiver does not accept."""


class Damaged(Malformed):
    """Frames that are not what was sent."""


class Codec:
    """Encodes any message, and decodes those of `accepts`, a class or a union of classes. Belongs to one thread."""

    def __init__(
        self,
        accepts: Any,
        encoders: Mapping[type, msgspec.msgpack.Encoder] | None = None,
        sealed: Collection[type] = (),
    ) -> None:
        """`encoders` are for messages whose fields are decoded as something else than arrays. Those that are `sealed`
        say themselves what their arrays must be: no byte of these is looked at twice."""
        self._arrays: list[Frame] = []
        """Of the message that is encoded or decoded now."""
        self._next = 0
        """Which of them comes next."""
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._write_array)
        self._encoders = dict(encoders or {})
        self._sealed = frozenset(sealed)
        self._decoder = msgspec.msgpack.Decoder(accepts, dec_hook=_check_array, ext_hook=self._read_array)

    def encode(self, message: Any) -> list[Frame]:
        """The frames of a message; those of arrays are views, so they are right until an array changes.

        Raises TypeError for a message that holds what no wire can carry."""
        self._arrays = []
        kind = type(message)
        body = (_SEALED if kind in self._sealed else _WHOLE) + self._encoders.get(kind, self._encoder).encode(message)
        arrays, self._arrays = self._arrays, []
        return [_CHECKSUM.pack(_checksum(body, arrays)) + body, *arrays]

    def decode(self, frames: Sequence[Frame]) -> Any:
        """The message. Its arrays are read-only views of the frames. Raises Malformed."""
        if not frames or len(frames[0]) <= _CHECKSUM.size:
            raise Damaged("no header")
        body, arrays = memoryview(frames[0])[_CHECKSUM.size :], list(frames[1:])
        if _checksum(body, arrays) != _CHECKSUM.unpack_from(frames[0])[0]:
            raise Damaged("the checksum is not that of the frames")
        self._arrays, self._next = arrays, 0
        try:
            message = self._decoder.decode(body[1:])
        except (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError) as error:
            raise Malformed(str(error)) from error
        finally:
            self._arrays = []
        if body[:1] != (_SEALED if type(message) in self._sealed else _WHOLE):
            raise Malformed(f"the checksum of a {type(message).__name__} goes as far as another message's")
        if self._next != len(arrays):
            raise Malformed(f"{len(arrays)} arrays, of which the message has {self._next}")
        return message

    def _write_array(self, value: Any) -> msgspec.msgpack.Ext:
        name = _NAMES.get(value.dtype) if isinstance(value, np.ndarray) else None
        if name is None:
            raise TypeError(f"no wire carries a {getattr(value, 'dtype', type(value).__name__)}")
        self._arrays.append(np.ascontiguousarray(value).data.cast("B") if value.size else b"")
        return msgspec.msgpack.Ext(_ARRAY, _write_shape((name, value.shape)))

    def _read_array(self, code: int, data: memoryview) -> NDArray[Any]:
        if code != _ARRAY:
            raise ValueError(f"extension {code}")
        name, shape = _read_shape(data)
        if name not in _DTYPES or self._next >= len(self._arrays):
            raise ValueError(f"an array of {name!r}, the {self._next + 1}. of {len(self._arrays)}")
        frame = self._arrays[self._next]
        self._next += 1
        array = np.frombuffer(frame, _DTYPES[name]).reshape(shape)
        array.flags.writeable = False
        return array


def _checksum(body: Frame, arrays: Sequence[Frame]) -> int:
    """Of the frames, as far as the first byte of the body says, and of where each ends."""
    checksum = zlib.crc32(body, zlib.crc32(_lengths(len(arrays) + 1).pack(len(body), *map(len, arrays))))
    for array in () if body[:1] == _SEALED else arrays:
        checksum = zlib.crc32(array, checksum)
    return checksum


@lru_cache(maxsize=256)
def _lengths(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}Q")


def _check_array(kind: Any, value: Any) -> Any:
    """A field of type NDArray[x] holds an array of x."""
    wanted = _dtype_of(kind)
    if not isinstance(value, np.ndarray) or wanted is None or value.dtype != wanted:
        raise ValueError(f"{kind} was to be read, and {type(value).__name__} came")
    return value


@lru_cache(maxsize=256)
def _dtype_of(kind: Any) -> np.dtype[Any] | None:
    """Of what a field of this type holds; None for one that holds no array."""
    return np.dtype(get_args(get_args(kind)[1])[0]) if len(get_args(kind)) == 2 else None
