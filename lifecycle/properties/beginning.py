"""What a checkpoint says of the run so far: from where properties begin when the records before it are gone."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import numpy as np

from pawl.lifecycle.limits import Limits
from pawl.lifecycle.machines.adapter import AdapterPhase
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.machines.serving import Serving
from pawl.lifecycle.machines.weight_group import GroupPhase
from pawl.lifecycle.machines.weights import Weights
from pawl.lifecycle.numbers import Newest
from pawl.lifecycle.records import CacheChange, Checkpoint, Int32s, Started, Submitted
from pawl.lifecycle.requests import RequestTable
from pawl.lifecycle.snapshot import table_of
from pawl.lifecycle.states import State
from pawl.lifecycle.step_times import StepTimes


class Totals(msgspec.Struct):
    """Counters of the loop."""

    received: int
    finished: int
    aborted: int
    prompt_tokens: int
    generated_tokens: int
    retractions: int


class _Cache(msgspec.Struct):
    trees: list[tuple[str, int, list[list[Any]]]] = []
    """(namespace, holds of the root, nodes); a node begins with its parent, its key, and its pages."""


class _Memory(msgspec.Struct):
    rows: list[tuple[int, bytes, int, Any]]
    """(slot, its pages, its length, what it holds of the cache)"""
    cache: _Cache


class _Served(msgspec.Struct):
    fingerprint: str
    version: str | None = None


class _Update(msgspec.Struct):
    version: str | None


class _Weights(msgspec.Struct):
    state: Weights
    served: _Served
    update: _Update | None = None


class _Limits(msgspec.Struct):
    now: Limits
    ready_at: float
    """When something last happened after which a step may be launched."""
    times: StepTimes


class Kept(msgspec.Struct):
    """One adapter."""

    number: int
    name: str
    source: str
    phase: AdapterPhase
    fingerprint: str
    slot: int
    ticket: int
    """Not 0 while it is read."""
    pinned: bool
    used: int
    """When it was used last, by the count of all uses."""


class _Companion(msgspec.Struct):
    adapters: list[Kept] = []


class _Group(msgspec.Struct):
    number: int
    phase: GroupPhase


class _Groups(msgspec.Struct):
    groups: dict[str, _Group]
    joined: int


class _Residency(msgspec.Struct):
    released: list[MemoryTag]


class _State(msgspec.Struct):
    """The part of `loops/snapshot.py` that properties begin with."""

    memory: _Memory
    table: dict[str, Any]
    counters: Totals
    admissions: int
    behind: int
    step: int
    newest: int
    draining: bool
    serving: Serving
    limits: _Limits
    sessions: list[Any]
    weights: _Weights
    groups: _Groups
    residency: _Residency
    ended_early: list[tuple[int, str, str]]
    newest_long: int
    companions: list[_Companion] = []


class Beginning(NamedTuple):
    """A moment without a step in flight."""

    started: Started
    arrivals: tuple[Submitted, ...]
    """Of the live requests, in their order."""
    table: RequestTable
    """Of the live requests."""
    rows: tuple[int, ...]
    """Live ones, in order of arrival."""
    working: tuple[int, ...]
    """Those that have a slot, and pages for what they have computed."""
    pages: dict[int, Int32s]
    """By slot."""
    cached: tuple[CacheChange, ...]
    """That lead from an empty cache to this one."""
    totals: Totals
    num_admissions: int
    behind: int
    """Steps with prompts running in which the prompt that began first was behind another."""
    step: int
    """The step planned last."""
    newest: Newest
    """The highest numbers of requests so far."""
    draining: bool
    """Requests that arrive are ended at once."""
    serving: Serving
    limits: _Limits
    sessions: list[Any]
    """As `loops/sessions.py` writes them out."""
    weights: _Weights
    adapters: tuple[Kept, ...]
    """Those that are not gone."""
    groups: _Groups
    residency: _Residency
    ended_early: frozenset[int]
    """Requests that are to be aborted when they come."""

    def num_known(self, row: int) -> int:
        """Tokens of a live row: prompt and output."""
        return int(self.table.num_tokens[row])

    def num_computed(self, row: int) -> int:
        """Committed positions of a working row."""
        if self.table.state[row] == State.PREFILLING:
            return int(self.table.num_computed[row])
        return self.num_known(row) - 1


def beginning_of(checkpoint: Checkpoint) -> Beginning:
    """Raises whatever a state that no loop has makes it raise."""
    state = msgspec.msgpack.decode(checkpoint.state or b"", type=_State)
    table = table_of(state.table)
    rows = tuple(table.live_rows().tolist())
    return Beginning(
        started=checkpoint.started,
        arrivals=tuple(_arrival(table, row) for row in rows),
        table=table,
        rows=rows,
        working=tuple(row for row in rows if State(int(table.state[row])).owns_memory),
        pages={slot: np.frombuffer(pages, np.int32) for slot, pages, *_ in state.memory.rows},
        cached=tuple(_stored(state.memory.cache)),
        totals=state.counters,
        num_admissions=state.admissions,
        behind=state.behind,
        step=state.step,
        newest=Newest(state.newest, state.newest_long),
        draining=state.draining,
        serving=state.serving,
        limits=state.limits,
        sessions=state.sessions,
        weights=state.weights,
        adapters=tuple(adapter for companion in state.companions for adapter in companion.adapters),
        groups=state.groups,
        residency=state.residency,
        ended_early=frozenset(number for number, *_ in state.ended_early),
    )


def _arrival(table: RequestTable, row: int) -> Submitted:
    info, deadline = table.info(row), float(table.deadline[row])
    return Submitted(
        request=info.request,
        row=row,
        rid=info.rid,
        tokens=table.tokens[row, : table.num_prompt[row]],
        sampling=info.sampling,
        priority=int(table.priority[row]),
        namespace=info.namespace,
        deadline=None if np.isinf(deadline) else deadline,
        time=info.submitted,
    )


def _stored(cache: _Cache) -> list[CacheChange]:
    changes: list[CacheChange] = []
    last_pages: list[int] = []
    for namespace, _, nodes in cache.trees:
        for parent, _, data, *_ in nodes:
            pages = np.frombuffer(data, np.int32)
            changes.append(CacheChange("stored", namespace, None if parent is None else last_pages[parent], pages))
            last_pages.append(int(pages[-1]))
    return changes
