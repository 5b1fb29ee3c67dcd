"""A systematic forger: every field of every kind of record, changed in every way that its type has.

A forgery is one change to a sound run, written with a chain of hashes that is right again. Its `kind` is a record, a
field and a way; nothing here knows what any of them means. What is not found is a hole in the audit, or something that
no trace can show, which `forger_reasons.py` lists with the reason.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from pawl.actors.simulation.exploration import drive, silence
from pawl.actors.simulation.faults import Faults
from pawl.lifecycle.records import (
    DECODER,
    ENCODER,
    Answered,
    AnswersClosed,
    CacheChange,
    Delivered,
    Record,
    TierTold,
    Transition,
)
from pawl.lifecycle.states import Cause, Event, State
from pawl.testing.cluster import cluster
from pawl.testing.exploring import STRATEGIES
from pawl.testing.workload import Workload

# ---- sound runs ----


def simulated(workload: Workload, seed: int, strategy: str, faults: Faults) -> list[Record]:
    """The records of one run of the simulated engine, as a reader of its trace gets them."""
    decider = STRATEGIES[strategy](seed)
    decider.begin()
    case = cluster(workload, decider, faults=faults, properties=lambda model: ())
    with silence():
        drive(case, max_steps=200_000)
    return DECODER.decode(ENCODER.encode(case.trace.records))


# ---- kinds ----


class Kind(NamedTuple):
    """What is done to which records."""

    record: str
    """A type of records, and where it has them a kind of its own."""
    field: str
    """A path within the record; empty: the record as a whole."""
    way: str

    def __str__(self) -> str:
        return f"{self.record}{'.' if self.field else ''}{self.field}: {self.way}"


class Forgery(NamedTuple):
    """One forged run."""

    kind: Kind
    at: int
    """Number of the record that is not what it was."""
    records: list[Record]

    @property
    def changed(self) -> Record | None:
        """What stands in its place; None where the record as a whole was left out or moved."""
        return self.records[self.at] if self.kind.field else None


# ---- forging ----


def label_of(record: Record) -> str:
    """The record's type, and what tells records of this type apart."""
    name = type(record).__name__
    match record:
        case Transition(event=event, cause=cause):
            return f"{name} {event.name} {cause}" if cause is not Cause.NONE else f"{name} {event.name}"
        case Delivered(kind=kind) | TierTold(kind=kind):
            return f"{name} {kind}"
    return name


def forgeries(records: Sequence[Record], source: random.Random) -> Iterator[Forgery]:
    """One forgery of each kind that this run has, at a place drawn from `source`."""
    places: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        places.setdefault(label_of(record), []).append(index)
    for label, indices in places.items():
        for way, forge in _MOVES.items():
            at = source.choice(indices)
            forged = forge(list(records), at, source)
            if forged is not None and _by_writer(forged) != _by_writer(records):
                yield Forgery(Kind(label, "", way), at, forged)
        for at, kind, value in _fields(records, label, indices, source):
            yield Forgery(kind, at, [*records[:at], value, *records[at + 1 :]])


def field_forged(records: Sequence[Record], source: random.Random) -> Forgery:
    """One forgery of one field, all drawn from `source`: a run has many, and to make them all takes a while."""
    variants: list[tuple[str, str, str, Any]] = []
    while not variants:
        at = source.randrange(len(records))
        record = records[at]
        others = [other for other in records if type(other) is type(record) and other is not record][:6]
        for name in type(record).__struct_fields__:
            value, theirs = getattr(record, name), [getattr(other, name) for other in others]
            found = _variants(value, theirs, str(type(record).__annotations__[name]), source)
            variants += [(name, path, way, forged) for path, way, forged in found]
    name, path, way, forged = source.choice(variants)
    changed = msgspec.structs.replace(record, **{name: forged})
    return Forgery(Kind(label_of(record), name + path, way), at, [*records[:at], changed, *records[at + 1 :]])


def _fields(
    records: Sequence[Record], label: str, indices: Sequence[int], source: random.Random
) -> Iterator[tuple[int, Kind, Record]]:
    """(place, kind, forged record): one for each way of changing each field."""
    columns = type(records[indices[0]]).__annotations__
    names = type(records[indices[0]]).__struct_fields__
    found: dict[Kind, tuple[int, Record]] = {}
    order = list(range(len(indices)))
    source.shuffle(order)
    # As many places as it takes to meet each kind once: some fields are empty in some records.
    for number in order[:12]:
        record = records[indices[number]]
        others = [records[indices[other]] for other in order if other != number][:6]
        for name in names:
            value = getattr(record, name)
            theirs = [getattr(other, name) for other in others]
            for path, way, forged in _variants(value, theirs, str(columns[name]), source):
                kind = Kind(label, name + path, way)
                if kind not in found:
                    changed = msgspec.structs.replace(record, **{name: forged})
                    if ENCODER.encode(changed) != ENCODER.encode(record):
                        found[kind] = indices[number], changed
    for kind, (at, changed) in found.items():
        yield at, kind, changed


Variant = tuple[str, str, Any]
"""(path within the value, way, forged value)"""


def _variants(value: Any, others: Sequence[Any], annotation: str, source: random.Random) -> Iterator[Variant]:
    if isinstance(value, bytes):
        yield from _of_column(value, others, annotation, source)
    elif isinstance(value, msgspec.Struct):
        for name in type(value).__struct_fields__:
            theirs = [getattr(other, name) for other in others if isinstance(other, msgspec.Struct)]
            inner = _variants(getattr(value, name), theirs, str(type(value).__annotations__[name]), source)
            for path, way, forged in inner:
                yield f".{name}{path}", way, msgspec.structs.replace(value, **{name: forged})
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        names: tuple[str, ...] = value._fields
        for name in names:
            theirs = [getattr(other, name) for other in others if hasattr(other, name)]
            inner = _variants(getattr(value, name), theirs, str(type(value).__annotations__[name]), source)
            for path, way, forged in inner:
                yield f".{name}{path}", way, value._replace(**{name: forged})
    elif isinstance(value, dict):
        yield from _of_dict(value, others, source)
    elif isinstance(value, tuple | list):
        yield from _of_sequence(value, others, source)
    else:
        yield from _of_plain(value, others, source)


def _of_plain(value: Any, others: Sequence[Any], source: random.Random) -> Iterator[Variant]:
    other = [each for each in others if each != value]
    if isinstance(value, bool):
        yield "", "negated", not value
        return
    if isinstance(value, State | Event | Cause):
        yield "", "another word", source.choice([word for word in type(value) if word is not value])
    elif isinstance(value, int):
        yield "", "one more", value + 1
        yield "", "one less", value - 1
    elif isinstance(value, float):
        yield "", "a bit more", value + 1e-3
        yield "", "a bit less", value - 1e-3
    elif isinstance(value, str):
        yield "", "another text", value + "x"
    elif value is None:
        given = [each for each in others if each is not None]
        yield "", "given", source.choice(given) if given else 1
    if value is not None and any(each is None for each in others):
        yield "", "taken away", None
    if other and not isinstance(value, State | Event | Cause):
        yield "", "of another record", source.choice(other)


def _of_dict(value: dict[Any, Any], others: Sequence[Any], source: random.Random) -> Iterator[Variant]:
    for key in value:
        yield f"[{key}]", "left out", {name: each for name, each in value.items() if name != key}
        theirs = [other[key] for other in others if isinstance(other, dict) and key in other]
        for path, way, forged in _variants(value[key], theirs, "", source):
            yield f"[{key}]{path}", way, value | {key: forged}


def _of_sequence(value: Sequence[Any], others: Sequence[Any], source: random.Random) -> Iterator[Variant]:
    kind = type(value)
    listed = list(value)
    if listed:
        at = source.randrange(len(listed))
        yield "[n]", "left out", kind([*listed[:at], *listed[at + 1 :]])
        yield "[n]", "twice", kind([*listed[: at + 1], *listed[at:]])
        theirs = [each[0] for each in others if isinstance(each, tuple | list) and each]
        if isinstance(listed[at], CacheChange):
            theirs = [each for each in theirs if isinstance(each, CacheChange)]
        for path, way, forged in _variants(listed[at], theirs, "", source):
            yield f"[n]{path}", way, kind([*listed[:at], forged, *listed[at + 1 :]])
    if len(listed) > 1:
        at = source.randrange(len(listed) - 1)
        yield "", "two exchanged", kind([*listed[:at], listed[at + 1], listed[at], *listed[at + 2 :]])
    filled = [each for each in others if each and each != value and isinstance(each, tuple | list)]
    if filled:
        yield "", "of another record", kind(source.choice(filled))


def _of_column(value: bytes, others: Sequence[Any], annotation: str, source: random.Random) -> Iterator[Variant]:
    width = 16 if "Keys" in annotation else 1 if "UInt8" in annotation or annotation.startswith("bytes") else 4
    items = [value[at : at + width] for at in range(0, len(value), width)]

    def number(item: bytes, by: int) -> bytes:
        if width == 16:
            return bytes([item[0] ^ 1]) + item[1:]
        most = 1 << (8 * width)
        return ((int.from_bytes(item, "little") + by) % most).to_bytes(width, "little")

    if items:
        at = source.randrange(len(items))
        yield "[n]", "one more", b"".join([*items[:at], number(items[at], 1), *items[at + 1 :]])
        yield "[n]", "one less", b"".join([*items[:at], number(items[at], -1), *items[at + 1 :]])
        yield "[n]", "left out", b"".join([*items[:at], *items[at + 1 :]])
        yield "[n]", "twice", b"".join([*items[: at + 1], *items[at:]])
        yield "", "empty", b""
        yield "", "cut within an item", value[:-1]
    if len(set(items)) > 1:
        at = source.choice([at for at in range(len(items) - 1) if items[at] != items[at + 1]])
        yield "", "two exchanged", b"".join([*items[:at], items[at + 1], items[at], *items[at + 2 :]])
    filled = [each for each in others if isinstance(each, bytes) and each != value]
    if filled:
        yield "", "of another record", source.choice(filled)
    elif value == b"" and not others:
        yield "", "given", bytes(width)


# ---- whole records ----


def _by_writer(records: Sequence[Record]) -> tuple[list[int], list[int]]:
    """What the scheduler wrote, and what the gateway wrote: how these fall between each other means nothing."""
    gateway = [id(each) for each in records if isinstance(each, Answered | AnswersClosed)]
    return [id(each) for each in records if not isinstance(each, Answered | AnswersClosed)], gateway


Move = Callable[[list[Record], int, random.Random], "list[Record] | None"]


def _later(records: list[Record], at: int, source: random.Random) -> list[Record] | None:
    to = at + source.randint(2, 12)
    if to >= len(records):
        return None
    return [*records[:at], *records[at + 1 : to + 1], records[at], *records[to + 1 :]]


def _earlier(records: list[Record], at: int, source: random.Random) -> list[Record] | None:
    to = at - source.randint(2, 12)
    if to < 0:
        return None
    return [*records[:to], records[at], *records[to:at], *records[at + 1 :]]


def _with_next(records: list[Record], at: int, source: random.Random) -> list[Record] | None:
    if at + 1 >= len(records):
        return None
    return [*records[:at], records[at + 1], records[at], *records[at + 2 :]]


def _cut(records: list[Record], at: int, source: random.Random) -> list[Record] | None:
    return records[:at] if at else None


_MOVES: dict[str, Move] = {
    "left out": lambda records, at, source: [*records[:at], *records[at + 1 :]],
    "twice": lambda records, at, source: [*records[: at + 1], *records[at:]],
    "exchanged with the next": _with_next,
    "moved later": _later,
    "moved earlier": _earlier,
    "the last": _cut,
}
