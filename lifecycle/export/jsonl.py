"""Records as JSON, one object a line, and back: nothing is lost on the way.

Columns are lists, states and events are names, keys of pages are hexadecimal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any, NamedTuple

import msgspec
import numpy as np

from pawl.lifecycle.records import (
    DECODER,
    RECORD_TYPES,
    CacheChange,
    Embedded,
    Record,
    Scores,
    float32s,
    int32s,
    uint8s,
)
from pawl.lifecycle.states import Event, State


class _Form(NamedTuple):
    """How the values of one annotation are written, and read back."""

    plain: Callable[[Any], Any]
    value: Callable[[Any], Any]


def _plain_change(change: CacheChange) -> dict[str, Any]:
    return change._asdict() | {"pages": int32s(change.pages).tolist()}


def _change(values: dict[str, Any]) -> CacheChange:
    return CacheChange(**values | {"pages": np.array(values["pages"], np.int32).tobytes()})


def _plain_scores(scores: Scores | None) -> dict[str, Any] | None:
    if scores is None:
        return None
    return {name: _COLUMNS[name](column).tolist() for name, column in scores._asdict().items()}


def _scores(values: dict[str, Any] | None) -> Scores | None:
    if values is None:
        return None
    return Scores(**{name: _COLUMNS[name](column).tobytes() for name, column in values.items()})


def _plain_embedded(embedded: Embedded | None) -> dict[str, Any] | None:
    if embedded is None:
        return None
    return {"rows": int32s(embedded.rows).tolist(), "digests": embedded.digests.hex()}


def _embedded(values: dict[str, Any] | None) -> Embedded | None:
    if values is None:
        return None
    return Embedded(np.array(values["rows"], np.int32).tobytes(), bytes.fromhex(values["digests"]))


_COLUMNS = {name: float32s if name in ("chosen", "top") else int32s for name in Scores._fields}
"""Of `Scores`, how each is read."""
_FORMS = {
    "Int32Column": _Form(lambda column: int32s(column).tolist(), lambda values: np.array(values, np.int32).tobytes()),
    "UInt8Column": _Form(lambda column: uint8s(column).tolist(), lambda values: np.array(values, np.uint8).tobytes()),
    "State": _Form(lambda state: state.name.lower(), lambda name: State[name.upper()]),
    "Event": _Form(lambda event: event.name.lower(), lambda name: Event[name.upper()]),
    "PageKeys": _Form(bytes.hex, bytes.fromhex),
    "Scores | None": _Form(_plain_scores, _scores),
    "Embedded | None": _Form(_plain_embedded, _embedded),
    "tuple[CacheChange, ...]": _Form(
        lambda changes: [_plain_change(change) for change in changes],
        lambda plain: [_change(values) for values in plain],
    ),
}
"""By annotation; what has none is a plain value already."""
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
        form, value = _FORMS.get(annotation), getattr(record, name)
        values[name] = value if form is None else form.plain(value)
    return values


def from_dict(values: dict[str, Any]) -> Record:
    """The record that `as_dict` made these values of. Raises ValueError, KeyError or msgspec.ValidationError."""
    kind = _KINDS[values["record"]]
    fields: list[Any] = []
    for name, annotation in kind.__annotations__.items():
        form = _FORMS.get(annotation)
        fields.append(values[name] if form is None else form.value(values[name]))
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
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise NotARecord(number, f"{type(error).__name__}: {error!s:.300}") from error
