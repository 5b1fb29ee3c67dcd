"""Traces of replicas beside each other: a request that one had which was lost goes on in another one as it was.

The next replica records what came with it: the output that its client had, which the lost one had recorded before. It
is the same request where number, name and prompt are, and the replicas are of one engine: a replica is always there
when another one takes its requests, so two that were never there together, nor with a third, are of two engines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise
from typing import NamedTuple

from pawl.lifecycle.columns import int32s
from pawl.lifecycle.hand_overs import role_of
from pawl.lifecycle.properties.base import ENDS
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import Answered, Checkpoint, Gap, Record, Started, Submitted, Transition


class Name(NamedTuple):
    """Which request."""

    number: int
    rid: str
    prompt: bytes


class Held(NamedTuple):
    """A request, as the trace of one replica has it."""

    name: Name
    output_before: bytes
    """Its output from replicas that were lost, int32."""
    num_retractions: int
    """That it came with."""
    output: bytes
    """As far as it is recorded, with what was there before."""
    answered: bool
    """Its client was told its end."""


class Replica(NamedTuple):
    """A replica that answers clients, as its trace has it."""

    began: float
    ended: float
    """Seconds since the epoch."""
    held: list[Held]


def replica_of(records: Iterable[Record]) -> Replica | None:
    """None where the trace is of an engine without replicas, or of one that prefills for others."""
    arrivals: dict[int, Submitted] = {}
    outputs: dict[int, bytes] = {}
    answered: set[int] = set()
    monitor, started, last = Monitor([]), None, 0.0
    for record in records:
        if started is None:
            first = record.started if isinstance(record, Checkpoint) else record
            if not isinstance(first, Started) or "replica" not in first.config or role_of(first) == "prefill":
                return None
            started = first
        last = max(last, getattr(record, "time", last))
        if isinstance(record, Transition) and record.event in ENDS:
            outputs |= _output(monitor.history, record.request)
        monitor.observe(record)
        if not monitor.judging or isinstance(record, Gap):
            break  # nothing that follows says what a request has
        if isinstance(record, Submitted):
            arrivals[record.request] = record
        elif isinstance(record, Answered):
            answered.add(record.request)
    for request in monitor.history.open:
        outputs |= _output(monitor.history, request)
    if started is None:
        return None
    held = [
        Held(
            Name(request, arrival.rid, int32s(arrival.tokens).tobytes()),
            int32s(arrival.output).tobytes(),
            arrival.num_retractions,
            outputs.get(request, b""),
            request in answered,
        )
        for request, arrival in arrivals.items()
    ]
    return Replica(started.wall, started.wall + max(0.0, last - started.time), held)


def _output(history: History, request: int) -> dict[int, bytes]:
    row = history.open.get(request)
    return {} if row is None else {request: history.output(row).tobytes()}


class GoneOn(NamedTuple):
    """What came of comparing the traces."""

    requests: int
    """That several of them have."""
    faults: tuple[str, ...]


def gone_on(replicas: Iterable[Replica | None]) -> GoneOn:
    """Every request of several replicas, as the one has it beside the other."""
    several: list[list[Held]] = []
    for engine in _engines([replica for replica in replicas if replica is not None]):
        found: dict[Name, list[Held]] = {}
        for held in (held for replica in engine for held in replica.held):
            found.setdefault(held.name, []).append(held)
        several += [sorted(each, key=_place) for each in found.values() if len(each) > 1]
    return GoneOn(len(several), tuple(fault for each in several for fault in _faults(each)))


def _engines(replicas: list[Replica]) -> Iterator[list[Replica]]:
    """Those that were there together, or with others in between."""
    engine: list[Replica] = []
    for replica in sorted(replicas, key=lambda each: each.began):
        if engine and replica.began > max(each.ended for each in engine):
            yield engine
            engine = []
        engine.append(replica)
    yield engine


def _place(held: Held) -> tuple[int, int]:
    """The first of a request is before the next."""
    return held.num_retractions, len(held.output_before)


def _faults(held: list[Held]) -> Iterator[str]:
    what = f"request {held[0].name.number}"
    if sum(each.answered for each in held) > 1:
        yield f"{what} has had its end from two replicas"
    if any(not _begin_alike(one.output_before, other.output_before) for one, other in combinations(held, 2)):
        yield f"{what} came to two replicas with outputs of which neither goes on from the other"
    for one, other in pairwise(held):
        # The next one may have had it, without a word to its client; what another one did then is not known here.
        next_one = one.num_retractions < other.num_retractions < one.num_retractions + 2
        if next_one and not _begin_alike(one.output, other.output_before):
            yield f"{what} came to a replica with an output that is not what the one before it had recorded"


def _begin_alike(one: bytes, other: bytes) -> bool:
    return one.startswith(other) or other.startswith(one)
