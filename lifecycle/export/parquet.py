"""Records as one Parquet table, for notebooks and SQL engines. Needs pyarrow.

A column for each field of any record: columns of records are lists, what has no fixed shape (configuration, control
messages, sampling parameters) is JSON text. `number` counts the records, `record` is the kind; a field that a kind does
not have is null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from pawl import pip_install
from pawl.lifecycle.export.jsonl import as_dict
from pawl.lifecycle.records import RECORD_TYPES, Record

_BATCH = 4096
"""Records in one row group."""


class ParquetUnavailable(ImportError):
    """pyarrow is not installed."""


def export_parquet(records: Iterable[Record], path: Path) -> int:
    """Write the table to `path`; the number of records written. Raises ParquetUnavailable."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ParquetUnavailable(f"Parquet needs pyarrow: {pip_install('pyarrow')}") from error
    types = {
        "Int32Column": pyarrow.list_(pyarrow.int32()),
        "UInt8Column": pyarrow.list_(pyarrow.uint8()),
        "State": pyarrow.string(),
        "Event": pyarrow.string(),
        "Cause": pyarrow.string(),
        "str": pyarrow.string(),
        "int": pyarrow.uint64(),  # digests fill 64 bits
        "int | None": pyarrow.uint64(),
        "float": pyarrow.float64(),
    }
    fields = {"number": pyarrow.uint64(), "record": pyarrow.string()}
    for kind in RECORD_TYPES:
        for name, annotation in kind.__annotations__.items():
            fields.setdefault(name, types.get(annotation, pyarrow.string()))
    plain = {name for name, type_ in fields.items() if type_ != pyarrow.string()}
    schema = pyarrow.schema(list(fields.items()))
    count = 0
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in _batches(records, plain):
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def _batches(records: Iterable[Record], plain: set[str]) -> Iterator[list[dict[str, Any]]]:
    numbered = enumerate(records)
    while batch := list(islice(numbered, _BATCH)):
        yield [{"number": number} | _row(record, plain) for number, record in batch]


def _row(record: Record, plain: set[str]) -> dict[str, Any]:
    return {
        name: value if value is None or name in plain or isinstance(value, str) else msgspec.json.encode(value).decode()
        for name, value in as_dict(record).items()
    }
