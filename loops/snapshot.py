"""Everything that decides what a loop does next, as plain data, and back: what a checkpoint holds.

Taken when no step is in flight. Restored into a fresh loop of the same configuration, with the cache in Python.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from pawl.lifecycle.requests import RequestInfo, RequestTable
from pawl.lifecycle.states import Cause, State
from pawl.loops.intake import Intake, Order
from pawl.loops.loop import Loop
from pawl.loops.orders import order_of
from pawl.loops.policy import Policy
from pawl.memory import snapshot as memory_snapshot
from pawl.memory.arrays import Int32s
from pawl.memory.snapshot import NoSnapshot, Plain

COLUMNS = (
    *("state", "slot", "num_prompt", "num_tokens", "max_tokens", "max_length", "num_computed"),
    *("order", "priority", "deadline", "stop_tokens"),
)
"""Of the table, for live rows; `attempt` is for all."""


def snapshot_of(intake: Intake) -> Plain:
    """All that decides. Raises NoSnapshot, which says what cannot be written out, and while a step is in flight."""
    loop = intake.loop
    if loop.companions:
        raise NoSnapshot(f"{type(loop.companions[0]).__name__} beside the loop")
    queues = loop.queues
    return {
        "memory": memory_snapshot.snapshot_of(loop.memory),
        "table": _table(loop.table),
        "waiting": list(queues.waiting),
        "retracted": queues.retracted,
        "prefilling": list(queues.prefilling),
        "decoding": queues.decoding.astype(np.int32).tobytes(),
        "admissions": queues._admissions,
        "policy": _policy(loop),
        "counters": msgspec.to_builtins(loop.counters),
        "try_again": loop.try_again,
        "step": loop.journal._step,
        "orders": [(number, msgspec.msgpack.encode(order)) for number, order in intake.waiting.items()],
        "draining": intake.draining,
        "newest": intake._newest,
        "ended_early": [(number, str(cause), text) for number, (cause, text) in intake._ended_early.items()],
    }


def checkpoint(intake: Intake, now: float) -> None:
    """Record all of it. No step is in flight."""
    try:
        state, missing = msgspec.msgpack.encode(snapshot_of(intake)), ""
    except NoSnapshot as error:
        state, missing = None, str(error)
    intake.loop.journal.checkpoint(state, missing, now)


def live_requests(state: bytes) -> Iterator[tuple[int, RequestInfo, int, Int32s]]:
    """Row, request, number of prompt tokens, and known tokens of those that live at a checkpoint. Raises what a state
    may raise that no engine has written."""
    table = msgspec.msgpack.decode(state)["table"]
    rows = np.frombuffer(table["rows"], np.int32)
    num_prompt = np.frombuffer(table["columns"]["num_prompt"], np.int32)
    infos = msgspec.msgpack.decode(table["infos"], type=list[RequestInfo])
    for row, info, count, tokens in zip(rows.tolist(), infos, num_prompt.tolist(), table["tokens"], strict=True):
        yield row, info, count, np.frombuffer(tokens, np.int32)


def restore(intake: Intake, plain: Plain) -> None:
    """Make a fresh loop that of the snapshot. Raises MemoryViolation where its memory has another digest."""
    loop = intake.loop
    queues = loop.queues
    memory_snapshot.restore(loop.memory, plain["memory"])
    _restore_table(loop.table, plain["table"])
    queues.waiting = dict.fromkeys(plain["waiting"])
    queues.retracted = list(plain["retracted"])
    queues.prefilling = dict.fromkeys(plain["prefilling"])
    queues.decoding = np.frombuffer(plain["decoding"], np.int32).astype(np.intp)
    queues._admissions = plain["admissions"]
    generator = _generator(loop)
    if generator is not None:
        version, numbers, gauss = plain["policy"]
        generator.setstate((version, tuple(numbers), gauss))
    for name, value in plain["counters"].items():
        setattr(loop.counters, name, value)
    loop.counters.by_cause = {Cause(cause): count for cause, count in loop.counters.by_cause.items()}
    loop.try_again = plain["try_again"]
    loop.journal._step = plain["step"]
    intake.waiting = {number: _order(data) for number, data in plain["orders"]}
    intake.draining, intake._newest = plain["draining"], plain["newest"]
    intake._ended_early = {number: (Cause(cause), text) for number, cause, text in plain["ended_early"]}


def _order(data: bytes) -> Order:
    fields = msgspec.msgpack.decode(data)
    return order_of(fields.pop("type"), fields)


def _generator(loop: Loop) -> random.Random | None:
    """What the policy draws from. Raises NoSnapshot for a policy of the user's own, which may keep anything."""
    policy = getattr(getattr(loop.planner, "admission", None), "policy", None)
    if type(policy).__module__ != Policy.__module__:
        raise NoSnapshot("the order of admission is the user's own")
    return getattr(policy, "_random", None)


def _policy(loop: Loop) -> Any:
    generator = _generator(loop)
    return None if generator is None else generator.getstate()


def _table(table: RequestTable) -> Plain:
    rows = table.live_rows()
    columns = {name: getattr(table, name)[rows] for name in COLUMNS}
    waits = np.array([not State(state).owns_memory for state in columns["state"].tolist()], np.bool_)
    for name in ("slot", "num_computed"):  # what a request that waits has there is left from before
        columns[name][waits] = 0
    # What the scheduler keeps there for clients decides nothing, and a replay does not have it.
    infos = [msgspec.structs.replace(table.info(row), passthrough=None, admitted=None) for row in rows.tolist()]
    return {
        "rows": rows.astype(np.int32).tobytes(),
        "columns": {name: column.tobytes() for name, column in columns.items()},
        "attempt": table.attempt.tobytes(),
        "tokens": [table.tokens[row, : table.num_tokens[row]].tobytes() for row in rows.tolist()],
        "infos": msgspec.msgpack.encode(infos),
        "free": table._free,
    }


def _restore_table(table: RequestTable, plain: Plain) -> None:
    rows = np.frombuffer(plain["rows"], np.int32)
    for name, data in plain["columns"].items():
        column = getattr(table, name)
        column[rows] = np.frombuffer(data, column.dtype).reshape(len(rows), *column.shape[1:])
    table.attempt[:] = np.frombuffer(plain["attempt"], np.int32)
    infos = msgspec.msgpack.decode(plain["infos"], type=list[RequestInfo])
    for row, tokens, info in zip(rows.tolist(), plain["tokens"], infos, strict=True):
        known = np.frombuffer(tokens, np.int32)
        table.tokens[row, : len(known)] = known
        table.infos[row] = info
        table.row_of[info.request] = row
    table._free = list(plain["free"])
