"""Every message that any actor accepts goes through bytes and comes out the same; what is damaged never comes out."""

from __future__ import annotations

import enum
import importlib
import pkgutil
import random
import sys
import types
import typing
from typing import Any, Union

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import pawl.actors
from pawl.actors.codec import make_codec
from pawl.actors.messages.control import Heartbeat, Reply
from pawl.actors.messages.execution import Execute
from pawl.actors.messages.transfer import Blocks
from pawl.actors.recorder import Records
from pawl.actors.runtime.actor import Actor
from pawl.actors.runtime.cell import message_types
from pawl.actors.runtime.codec import Codec, Malformed
from pawl.lifecycle.records import Submitted, int32s
from pawl.lifecycle.request import SamplingParameters

DAMAGED = 4_000


def accepted() -> list[type]:
    """The types in the `accepts` of all actors there are."""
    for module in pkgutil.walk_packages(pawl.actors.__path__, "pawl.actors."):
        importlib.import_module(module.name)
    found: dict[type, None] = {}
    waiting = [Actor]
    while waiting:
        actor = waiting.pop()
        waiting += [one for one in actor.__subclasses__() if one.__module__.startswith("pawl.actors.")]
        if actor.accepts is not None:
            found.update(dict.fromkeys(message_types(actor.accepts)))
    return sorted(found, key=lambda kind: kind.__qualname__)


ACCEPTED = accepted()
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
"""What stands where a field may hold anything: what JSON may hold."""
SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(max_size=6),
    bytes: st.binary(max_size=20),
    type(None): st.none(),
    Any: PLAIN,
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of this type."""
    if kind in SIMPLE:
        return SIMPLE[kind]
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if hasattr(origin, "__value__"):  # numpy's arrays are a type alias where Python has those
        return values_of(origin.__value__[inside])
    if origin is typing.Annotated:
        meta = next((each for each in inside[1:] if isinstance(each, msgspec.Meta)), msgspec.Meta())
        return bounded(inside[0], meta)
    if origin in (Union, types.UnionType):
        return st.one_of([values_of(one) for one in inside])
    if origin is typing.Literal:
        return st.sampled_from(inside)
    if origin is np.ndarray:
        return arrays.arrays(typing.get_args(inside[1])[0], arrays.array_shapes(min_dims=1, max_dims=2, min_side=0))
    if origin is tuple:
        if inside[-1] is ...:
            return st.lists(values_of(inside[0]), max_size=3).map(tuple)
        return st.tuples(*map(values_of, inside))
    if origin is list:
        return st.lists(values_of(inside[0]), max_size=3)
    if origin is dict:
        return st.dictionaries(values_of(inside[0]), values_of(inside[1]), max_size=3)
    if issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    assert issubclass(kind, msgspec.Struct) or hasattr(kind, "_fields"), f"no values of {kind!r}"
    hints = typing.get_type_hints(kind, include_extras=True)
    names = kind._fields if hasattr(kind, "_fields") else kind.__struct_fields__
    return st.builds(kind, **{name: st.deferred(lambda hint=hints[name]: values_of(hint)) for name in names})


def bounded(kind: Any, meta: msgspec.Meta) -> st.SearchStrategy[Any]:
    """Any value of this type within the bounds of its annotation."""
    if meta.pattern is not None:
        return st.from_regex(meta.pattern, fullmatch=True)
    bounds = meta.ge, meta.le
    if kind is float and bounds != (None, None):
        return st.floats(*bounds)
    if kind is int and bounds != (None, None):
        return st.integers(*bounds)
    if kind is str and (meta.min_length or meta.max_length is not None):
        return st.text(min_size=meta.min_length or 0, max_size=min(meta.max_length or 6, 6))
    return values_of(kind)


def same(a: Any, b: Any) -> bool:
    """Whether two values are of the same type and content, through and through."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape) == (b.dtype, b.shape) and a.tobytes() == b.tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, msgspec.Struct):
        return all(same(getattr(a, name), getattr(b, name)) for name in a.__struct_fields__)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(a == b)


def test_the_messages_of_every_actor_are_walked() -> None:
    names = {kind.__qualname__ for kind in ACCEPTED}
    assert {"Submit", "Generate", "Execute", "Executed", "Blocks", "Fill", "StepTokens", "Outputs", "Records"} <= names
    assert {"Down", "Heartbeat", "Stalled", "FlushCache", "Reply"} <= names


@pytest.mark.parametrize("kind", ACCEPTED, ids=lambda kind: kind.__qualname__)
@given(data=st.data())
@settings(max_examples=20)
def test_every_message_comes_out_as_it_went_in(kind: type, data: st.DataObject) -> None:
    codec = make_codec(kind)
    message = data.draw(values_of(kind))
    assert same(codec.decode([bytes(frame) for frame in codec.encode(message)]), message)


def blocks(count: int = 3) -> Blocks:
    keys = tuple(bytes([number]) * 16 for number in range(count))
    return Blocks(7, keys, np.arange(count * 64, dtype=np.uint8).reshape(count, 64))


def test_arrays_are_frames_of_their_own_and_are_copied_neither_way() -> None:
    codec, message = make_codec(Blocks), blocks()
    header, frame = codec.encode(message)
    assert len(header) < message.data.nbytes
    assert np.shares_memory(np.frombuffer(frame, np.uint8), message.data)
    assert np.shares_memory(codec.decode([header, frame]).data, message.data)


def test_arrays_that_came_from_a_wire_cannot_be_written() -> None:
    codec = make_codec(Blocks)
    received = codec.decode([bytearray(frame) for frame in codec.encode(blocks())])
    with pytest.raises(ValueError, match="read-only"):
        received.data[0, 0] = 1


def test_an_array_that_lies_in_strides_is_carried_as_what_it_shows() -> None:
    codec, every_second = make_codec(Blocks), blocks()
    every_second = msgspec.structs.replace(every_second, data=every_second.data[:, ::2])
    assert same(codec.decode(codec.encode(every_second)), every_second)


def test_columns_of_records_arrive_as_in_a_trace() -> None:
    record = Submitted(
        request=1,
        row=0,
        rid="a",
        tokens=np.array([3, 1, 2], np.int32),
        sampling=SamplingParameters(),
        priority=0,
        namespace="",
        deadline=None,
        time=1.0,
    )
    codec = make_codec(Records)
    (received,) = codec.decode(codec.encode(Records((record,)))).records
    assert int32s(received.tokens).tolist() == [3, 1, 2]


@pytest.mark.parametrize("value", [object(), {1, 2}.__iter__(), np.array([object()]), np.array(["text"])])
def test_what_no_wire_can_carry_is_refused_by_the_sender(value: Any) -> None:
    with pytest.raises(TypeError, match="no wire carries"):
        make_codec(Reply).encode(Reply(1, True, body={"value": value}))


def test_a_message_of_a_type_that_the_receiver_does_not_accept_is_malformed() -> None:
    with pytest.raises(Malformed, match="Heartbeat"):
        make_codec(Blocks | Reply).decode(make_codec(Heartbeat).encode(Heartbeat(1.0)))


def test_an_array_of_another_type_than_the_fields_is_malformed() -> None:
    wrong = msgspec.structs.replace(blocks(), data=np.zeros((3, 64), np.int64))
    codec = make_codec(Blocks)
    with pytest.raises(Malformed, match="uint8"):
        codec.decode(codec.encode(wrong))


def examples() -> list[tuple[Codec, list[bytes]]]:
    batch = {name: np.arange(4, dtype=np.int32) for name in ("slots", "starts", "lengths", "tokens")}
    flags = {name: np.ones(4, np.bool_) for name in ("chained", "samples")}
    pages = {name: np.arange(3, dtype=np.int32) for name in ("page_slots", "page_indices", "pages")}
    step = typing.get_type_hints(Execute)["batch"](step=9, **batch, **flags, **pages)
    messages = [blocks(), Execute(step), Reply(3, True, "text", {"a": [1, None, 2.5]}), Heartbeat(None)]
    codec = make_codec(Blocks | Execute | Reply | Heartbeat)
    return [(codec, [bytes(frame) for frame in codec.encode(message)]) for message in messages]


def damage(source: random.Random, frames: list[bytes]) -> list[bytes]:
    """The same frames with something wrong."""
    frames = list(frames)
    at = source.randrange(len(frames))
    frame = bytearray(frames[at])
    match source.randrange(6):
        case 0 if frame:
            frame[source.randrange(len(frame))] ^= 1 << source.randrange(8)
        case 1 if frame:
            del frame[source.randrange(len(frame)) :]
        case 2:
            frame += source.randbytes(source.randrange(1, 9))
        case 3 if len(frames) > 1:
            del frames[at]
            return frames
        case 4:
            frames.insert(source.randrange(1, len(frames) + 1), source.randbytes(source.randrange(5)))
            return frames
        case _:
            frame = bytearray(source.randbytes(source.randrange(40)))
    frames[at] = bytes(frame)
    return frames


def test_damaged_frames_are_malformed_and_nothing_else() -> None:
    source = random.Random(5)
    whole = examples()
    for _ in range(DAMAGED):
        codec, frames = source.choice(whole)
        damaged = damage(source, frames)
        assert damaged != frames
        with pytest.raises(Malformed):
            codec.decode(damaged)


def test_a_peer_that_lies_with_a_right_checksum_gets_no_further_than_a_message_of_an_accepted_type() -> None:
    source = random.Random(6)
    whole = examples()
    kinds = (Blocks, Execute, Reply, Heartbeat)
    refused = 0
    for _ in range(DAMAGED):
        codec, frames = source.choice(whole)
        header, *arrays_of_it = damage(source, frames)
        try:
            assert isinstance(codec.decode([checked(header[4:], arrays_of_it), *arrays_of_it]), kinds)
        except Malformed:
            refused += 1
    assert refused > DAMAGED // 3


def checked(body: bytes, frames: list[bytes]) -> bytes:
    """A header whose checksum is right."""
    from pawl.actors.runtime import codec

    return codec._CHECKSUM.pack(codec._checksum(body, frames)) + body


def test_a_message_has_as_many_arrays_as_came_and_its_codec_keeps_none_of_them() -> None:
    codec = make_codec(Blocks)
    header, data = (bytearray(frame) for frame in codec.encode(blocks()))
    known = sys.getrefcount(data)
    more = (data, b"more")
    with pytest.raises(Malformed, match="2 arrays, of which the message has 1"):
        codec.decode([checked(bytes(header[4:]), [*more]), *more])
    del more
    assert same(codec.decode([header, data]), blocks())
    assert sys.getrefcount(data) == known


def test_arrays_that_say_themselves_what_they_must_be_are_not_looked_at_and_all_else_is() -> None:
    codec = Codec(Blocks, sealed=(Blocks,))
    header, data = (bytearray(frame) for frame in codec.encode(blocks()))
    data[70] ^= 1
    assert codec.decode([header, data]).data[1, 6] == blocks().data[1, 6] ^ 1
    for frames in ([header, data[:-1]], [header, data, b""], [header[:20] + b"?" + header[21:], data]):
        with pytest.raises(Malformed):
            codec.decode(frames)


def test_nobody_but_the_type_of_a_message_says_how_far_its_checksum_goes() -> None:
    sealed, whole = Codec(Blocks, sealed=(Blocks,)), make_codec(Blocks)
    for sender, receiver in ((sealed, whole), (whole, sealed)):
        with pytest.raises(Malformed, match="goes as far as another"):
            receiver.decode(sender.encode(blocks()))


@pytest.mark.parametrize("frames", [[], [b""], [b"\x00\x00\x00\x00"], [b"abc", b"def"]])
def test_too_few_bytes_are_malformed(frames: list[bytes]) -> None:
    with pytest.raises(Malformed):
        make_codec(Heartbeat).decode(frames)


def test_an_extension_that_is_no_array_is_refused_by_its_number() -> None:
    """An array of one number stands in the frame: by its shape alone this would be it."""
    codec = Codec(Reply)
    shape = bytes(codec._write_array(np.zeros(1, np.int32)).data)
    codec._arrays = [bytes(4)]
    with pytest.raises(ValueError, match="extension 7"):
        codec._read_array(7, memoryview(shape))
