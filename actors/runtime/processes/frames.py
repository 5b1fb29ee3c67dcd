"""What two processes say to each other, as frames of bytes.

    frame 0     checksum (crc32, 4 bytes) and one of the structs below in msgpack
    frame 1 …   of a `Post` alone: the message, as `pawl.actors.runtime.codec` writes it

The checksum of frame 0 is also that of the message's own checksum, so a header fits one message only.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec

from pawl.actors.runtime.codec import Frame, Malformed

MOST_FRAMES = 4096
"""Of one message: its arrays, and two."""
MOST_BYTES = 1 << 30
"""Of one frame; a peer that sends more is disconnected."""

Name: TypeAlias = Annotated[str, msgspec.Meta(max_length=256)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class Card(msgspec.Struct, frozen=True, array_like=True):
    """One actor, for those who send to it from elsewhere."""

    name: Name
    capacity: Number
    overflow: Annotated[int, msgspec.Meta(ge=0, le=1)]
    hears_down: bool
    """Whether it accepts `Down`, so that it may watch."""


class Hello(msgspec.Struct, frozen=True, array_like=True, tag="hello"):
    """The first words: which process this is, and what runs there."""

    process: Name
    version: Name
    cards: tuple[Card, ...]


class Spawned(msgspec.Struct, frozen=True, array_like=True, tag="spawned"):
    """An actor came up later."""

    card: Card


class Post(msgspec.Struct, frozen=True, array_like=True, tag="post"):
    """A message; `number` counts those of its (sender, receiver, lane) from 1."""

    sender: Name
    receiver: Name
    lane: Annotated[int, msgspec.Meta(ge=0, le=2)]
    number: Number
    fenced: bool
    """It goes behind everything that its receiver has been sent, in every lane (`Down`)."""


class Credit(msgspec.Struct, frozen=True, array_like=True, tag="credit"):
    """How many DATA messages of this link the receiver has taken so far."""

    receiver: Name
    taken: Count


class Eager(msgspec.Struct, frozen=True, array_like=True, tag="eager"):
    """Somebody waits until all is taken that this receiver was sent: tell every credit at once from now on."""

    receiver: Name


class Watch(msgspec.Struct, frozen=True, array_like=True, tag="watch"):
    """An actor here wants to know when one of yours fails."""

    watcher: Name
    watched: Name


class Stop(msgspec.Struct, frozen=True, array_like=True, tag="stop"):
    """End this actor: after what waits for it, or (`cut`) after the handler that runs now."""

    name: Name
    reason: str
    cut: bool


class Over(msgspec.Struct, frozen=True, array_like=True, tag="over"):
    """This actor has ended, and all that it ever sent to this process was taken."""

    name: Name
    failed: bool


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """The process is alive."""


class Bye(msgspec.Struct, frozen=True, array_like=True, tag="bye"):
    """The process leaves, as it should."""


Word: TypeAlias = Hello | Spawned | Post | Credit | Eager | Watch | Stop | Over | Beat | Bye

_CHECKSUM = struct.Struct("<I")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Word).decode


def written(word: Word, message: Sequence[Frame] = ()) -> list[Frame]:
    """The frames of a word, with those of its message."""
    body = _encode(word)
    return [_CHECKSUM.pack(_checksum(body, message)) + body, *message]


def read(frames: Sequence[Frame]) -> tuple[Word, Sequence[Frame]]:
    """The word, and the frames of its message. Raises Malformed."""
    if not frames or len(frames[0]) <= _CHECKSUM.size or len(frames) > MOST_FRAMES:
        raise Malformed(f"{len(frames)} frames, and no header")
    body, message = memoryview(frames[0])[_CHECKSUM.size :], frames[1:]
    if _checksum(body, message) != _CHECKSUM.unpack_from(frames[0])[0]:
        raise Malformed("the checksum is not that of the header")
    try:
        word = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError, OverflowError) as error:
        raise Malformed(str(error)) from error
    if message and word.__class__ is not Post:
        raise Malformed(f"{type(word).__name__} has no message")
    return word, message


def _checksum(body: Frame, message: Sequence[Frame]) -> int:
    """Of the header and the first bytes of the message, which are the checksum of all the rest."""
    return zlib.crc32(body, zlib.crc32(bytes(message[0][: _CHECKSUM.size]))) if message else zlib.crc32(body)
