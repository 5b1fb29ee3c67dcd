"""Cuts a story of records in two: the checkpoint that an engine would have written there, and what follows it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from pawl.lifecycle import snapshot
from pawl.lifecycle.limits import Limits
from pawl.lifecycle.properties.base import Property
from pawl.lifecycle.properties.bounded_gaps import BoundedGaps
from pawl.lifecycle.properties.ending import AbortIsTotal
from pawl.lifecycle.properties.giving_way import AdmissionIsMonotone
from pawl.lifecycle.properties.legal_lifecycle import LegalLifecycle
from pawl.lifecycle.properties.limits import LimitsHold
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.properties.observability_conservation import ObservabilityConservation
from pawl.lifecycle.properties.pausing import PausedIsStill
from pawl.lifecycle.properties.progress import FaultIsolation
from pawl.lifecycle.properties.prompt_turns import PromptsTakeTurns
from pawl.lifecycle.properties.residency import ReleasedIsStill
from pawl.lifecycle.properties.sharing import WeightEpochs
from pawl.lifecycle.properties.stream_positions import StreamPositions
from pawl.lifecycle.properties.weight_groups import WeightGroups
from pawl.lifecycle.records import Checkpoint, Record, Started, Submitted, Transition, int32s
from pawl.lifecycle.requests import RequestInfo, RequestTable
from pawl.lifecycle.states import Event, State

AnyProperty = TypeVar("AnyProperty", bound=Property)


def moments(records: Sequence[Record]) -> Iterator[int]:
    """Where no step is in flight, none is being planned, and what came last has had its consequences: a checkpoint may
    stand before each of these."""
    monitor = Monitor()
    for at, record in enumerate(records):
        planning = monitor.history._admissions or isinstance(records[at - 1], Submitted)
        follows = isinstance(record, Transition) and record.event != Event.ADMIT
        if at and not (monitor.history.in_flight or planning or follows or monitor.history.closed is not None):
            yield at
        monitor.observe(record)
        if not monitor.judging:
            return


def cut(records: Sequence[Record], at: int) -> list[Record]:
    """A checkpoint in the place of all records before `at`, and the rest."""
    return [_checkpoint(records[:at]), *records[at:]]


def _checkpoint(records: Sequence[Record]) -> Checkpoint:
    started = records[0]
    assert isinstance(started, Started)
    monitor = Monitor()
    for record in records:
        monitor.observe(record)
    history = monitor.history
    slots = sorted(row for row in history.open.values() if history.working[row])
    totals = _of(monitor, ObservabilityConservation)
    live = sum(int(history.num_output[row]) for row in history.open.values())
    state = {
        "table": snapshot.snapshot_of(_table(monitor, records)),
        "memory": {
            "rows": [(slot, _pages(monitor, slot).tobytes(), 0, None) for slot in slots],
            "cache": {"trees": _trees(monitor)},
        },
        "counters": {
            "received": totals._received,
            "finished": totals._finished,
            "aborted": totals._aborted,
            "prompt_tokens": totals._prompt_tokens,
            "generated_tokens": totals._output_tokens + live,
            "retractions": totals._retractions,
        },
        "admissions": _of(monitor, AdmissionIsMonotone)._ranks.count,
        "behind": _of(monitor, PromptsTakeTurns)._behind,
        "step": history._last_step,
        "newest": max((record.request for record in records if isinstance(record, Submitted)), default=0),
        "newest_long": 0,
        "draining": _of(monitor, AbortIsTotal)._drains,
        "sessions": [],
        "limits": {
            "now": _of(monitor, LimitsHold)._limits.now or Limits(max_running=8, prefill_chunk=8, max_queued=8),
            "ready_at": _of(monitor, LimitsHold)._ready_at,
            "times": msgspec.to_builtins(_of(monitor, BoundedGaps)._times),
        },
        "serving": str(_of(monitor, PausedIsStill)._pauses.serving),
        "residency": {"released": sorted(_of(monitor, ReleasedIsStill)._releases.tags)},
        "weights": {"state": _of(monitor, WeightEpochs)._state, "served": {"fingerprint": history.weights.fingerprint}},
        "groups": {"groups": {}, "joined": _of(monitor, WeightGroups)._newest},
        "ended_early": [(request, "client", "") for request in _of(monitor, AbortIsTotal)._asked],
    }
    return Checkpoint(started, msgspec.msgpack.encode(state), "", _time(records))


def _of(monitor: Monitor, kind: type[AnyProperty]) -> AnyProperty:
    return next(each for each in monitor.properties if isinstance(each, kind))


def _time(records: Sequence[Record]) -> float:
    return max(getattr(record, "time", 0.0) for record in records)


def _table(monitor: Monitor, records: Sequence[Record]) -> RequestTable:
    history = monitor.history
    table = RequestTable(8, 64)
    for request, row in history.open.items():
        submitted = history.submissions[row]
        info = RequestInfo(request, submitted.rid, submitted.sampling, submitted.namespace, submitted.time)
        info.strikes = _of(monitor, FaultIsolation)._strikes[request]
        moves = [move for move in records if isinstance(move, Transition) and move.request == request]
        info.num_retractions = sum(move.event == Event.RETRACT for move in moves)
        info.num_cached = next((move.num_cached or 0 for move in moves if move.event == Event.ADMIT), 0)
        table._free.sort(key=lambda free, row=row: free == row)  # type: ignore[misc]
        table.open(info, int32s(submitted.tokens), submitted.priority, float("inf"))
        table.place(row)
        for output in history.output(row).tolist():
            table.append(np.array([row]), np.array([output], np.int32))
        table.state[row] = _of(monitor, LegalLifecycle)._state[row]
        table.slot[row] = row
        if table.state[row] == State.PREFILLING:
            table.num_computed[row] = _of(monitor, StreamPositions)._next[row]
        rank = _of(monitor, AdmissionIsMonotone)._ranks.of.get(request)
        table.order[row] = table.order[row] if rank is None else rank
    return table


def _pages(monitor: Monitor, row: int) -> np.ndarray:
    pages = monitor.history.pages._table.get(row, {})
    return np.array([pages[index] for index in range(len(pages))], np.int32)


def _trees(monitor: Monitor) -> list[tuple[str, int, list[Any]]]:
    """Each page a node of its own."""
    cache = monitor.history.cache
    trees: dict[str, list[Any]] = {}
    for namespace in cache.namespace.values():
        trees.setdefault(namespace, [])
    index = {
        page: at for at, page in enumerate(sorted(cache.namespace, key=lambda p: list(trees).index(cache.namespace[p])))
    }
    for page in index:
        parent = cache._parent[page]
        node = [None if parent is None else index[parent], b"", np.array([page], np.int32).tobytes()]
        trees[cache.namespace[page]].append(node)
    return [(namespace, 0, nodes) for namespace, nodes in trees.items()]
