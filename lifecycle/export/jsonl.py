"""Records as JSON, one object a line, and back: nothing is lost on the way.

Columns are lists, states and events are names, bytes in msgpack (control messages) are unpacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from lifecycle.records import DECODER, RECORD_TYPES, Record, int32s, uint8s
from lifecycle.states import Event, State

_COLUMNS: dict[str, Callable[[Any], NDArray[Any]]] = {"Int32Column": int32s, "UInt8Column": uint8s}
_DTYPES = {"Int32Column": np.int32, "UInt8Column": np.uint8}
_NAMES: dict[str, type[State] | type[Event]] = {"State": State, "Event": Event}
_KINDS = {kind.__name__: kind for kind in RECORD_TYPES}


class NotARecord(ValueError):
    """A line is not what `export_jsonl` writes."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        """Counted from 1."""


def as_dict(record: Record) -> dict[str, Any]:
    """A record as plain values, its kind under `record`."""
    values: dict[str, Any] = {"record": type(record).__name__}
    for name, annotation in type(record).__annotations__.items():
        value = getattr(record, name)
        if annotation in _COLUMNS:
            value = _COLUMNS[annotation](value).tolist()
        elif annotation in _NAMES:
            value = value.name.lower()
        elif isinstance(value, bytes):
            value = msgspec.msgpack.decode(value)
        values[name] = value
    return values


def from_dict(values: dict[str, Any]) -> Record:
    """The record that `as_dict` made these values of. Raises ValueError, KeyError or msgspec.ValidationError."""
    kind = _KINDS[values["record"]]
    fields: list[Any] = []
    for name, annotation in kind.__annotations__.items():
        value = values[name]
        if annotation in _DTYPES:
            value = np.array(value, _DTYPES[annotation]).tobytes()
        elif annotation in _NAMES:
            value = _NAMES[annotation][value.upper()]
        elif annotation == "bytes":
            value = msgspec.msgpack.encode(value)
        fields.append(value)
    # Through the decoder that reads traces, so that nothing enters here that could not have been read there.
    return DECODER.decode(msgspec.msgpack.encode([[kind.__struct_config__.tag, *fields]]))[0]


def export_jsonl(records: Iterable[Record], output: IO[str]) -> int:
    """Write one JSON object a line; the number of records written."""
    count = 0
    for record in records:
        output.write(msgspec.json.encode(as_dict(record)).decode())
        output.write("\n")
        count += 1
    return count


def import_jsonl(lines: Iterable[str]) -> Iterator[Record]:
    """The records of such lines, empty ones left out. Raises NotARecord."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield from_dict(msgspec.json.decode(line, type=dict[str, Any]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise NotARecord(number, f"{type(error).__name__}: {error}") from error
