"""The live requests as plain data, and back: what a checkpoint holds of them.

Taken when no step is in flight, so the row of a request that has ended is free.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
import numpy as np

from pawl.lifecycle.requests import RequestInfo, RequestTable
from pawl.lifecycle.states import State

Plain: TypeAlias = dict[str, Any]
"""Values that msgpack can hold; arrays are bytes."""

COLUMNS = ("state", "slot", "num_prompt", "num_computed", "order", "priority", "deadline")
"""Of the table, for live rows; `attempt` is for all. What else there is follows from tokens and infos."""


def snapshot_of(table: RequestTable) -> Plain:
    """All that decides, of every live request in order of arrival."""
    rows = table.live_rows()
    columns = {name: getattr(table, name)[rows] for name in COLUMNS}
    waits = np.array([not State(state).owns_memory for state in columns["state"].tolist()], np.bool_)
    for name in ("slot", "num_computed"):  # what a request that waits has there is left from before
        columns[name][waits] = 0
    # What the scheduler keeps there for clients decides nothing, and a replay does not have it.
    infos = [_deciding(table.info(row)) for row in rows.tolist()]
    return {
        "rows": rows.astype(np.int32).tobytes(),
        "columns": {name: column.tobytes() for name, column in columns.items()},
        "attempt": table.attempt.tobytes(),
        "tokens": [table.known(row).tobytes() for row in rows.tolist()],
        "infos": msgspec.msgpack.encode(infos),
        "free": table._free,
    }


def _deciding(info: RequestInfo) -> RequestInfo:
    """Without what is for clients. What a lost replica has said to one is not recorded, but for what decides."""
    plain = msgspec.structs.replace(info, passthrough=None, admitted=None)
    return msgspec.structs.replace(plain, submitted=0.0, first_token=None) if info.num_resumed else plain


def restore(table: RequestTable, plain: Plain) -> None:
    """Make an empty table that of the snapshot. Raises ValueError, KeyError, IndexError or msgspec.DecodeError for one
    that is none."""
    rows = np.frombuffer(plain["rows"], np.int32)
    for name, data in plain["columns"].items():
        column = getattr(table, name)
        column[rows] = np.frombuffer(data, column.dtype)
    table.attempt[:] = np.frombuffer(plain["attempt"], np.int32)
    infos = msgspec.msgpack.decode(plain["infos"], type=list[RequestInfo])
    for row, tokens, info in zip(rows.tolist(), plain["tokens"], infos, strict=True):
        known = np.frombuffer(tokens, np.int32)
        table.tokens[row, : len(known)] = known
        table.num_tokens[row] = len(known)
        table.describe(row, info, int(table.num_prompt[row]))
        table.row_of[info.request] = row
    if len(table.row_of) != len(rows):
        raise ValueError("a checkpoint has two live requests of one number")
    table._free = list(plain["free"])


def table_of(plain: Plain) -> RequestTable:
    """A table that is just large enough for the snapshot. Raises as `restore`."""
    width = max((len(tokens) // 4 for tokens in plain["tokens"]), default=1)
    table = RequestTable(len(plain["attempt"]) // 4, width)
    restore(table, plain)
    return table
