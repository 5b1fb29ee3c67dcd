"""Every private book of every actor and of the loop is empty at rest.

A book is a list, dictionary, set or deque that an object of ours keeps. None is named here: whatever stands in one
while nobody is live and nothing is under way was forgotten, unless `KEPT` says why it stays.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from typing import Any, cast

import msgspec

from pawl.actors.asks import AskExpired
from pawl.actors.simulation.system import SimulatedSystem
from pawl.actors.weight_groups import TimeOver

_TOTALS = "counts since the start"
_RUN = "what simulated clients were told, for the judgement at the end"
_SETTLES = "goes on when the actor settles, which may be to come"
_SETTINGS = "as it was made at the start"
KEPT: dict[str, str] = {
    "Adapters.by_number": "those that are loaded; one that is forgotten in an unload leaves that without an answer",
    "AnswerTraces._traces": "recorders of the replicas that serve",
    "CacheEventLog._followers": _SETTINGS,
    "CacheEventLog.unrecorded": "is recorded ahead of the next record",
    "FileStore._known": "files that are there",
    "Counters.by_cause": _TOTALS,
    "FrontDesk.calls": _RUN,
    "FrontDesk.answers": _RUN,
    "FrontDesk.clients": _RUN,
    "Gateway.adapters": "those that are loaded",
    "Gateway._loads_again": "tickets of asks, one for each name that is loaded again; others go when one comes",
    "Gateway.unloaded": "a bounded number of those that were; the one that was unloaded first is forgotten first",
    "Histogram.counts": _TOTALS,
    "Intake._ended_early": "of requests that were refused on their way; forgotten when a later one comes",
    "Linker._attempts": "peers of which the router wants to hear",
    "Links._links": "of the replicas that prefill with those that decode",
    "LowerTiers._untold": _SETTLES,
    "PrefixAffinity._seen": "a bounded number of pages that prompts had",
    "Rate._seconds": "of the last minute",
    "RequestTable._free": "rows that are free",
    "RequestTable.infos": "of every row; None where it is free, which `auxiliary_conservation` looks at",
    "ReplicaAsks._replicas": "those that serve",
    "ReplicaAsks._others": "those that prefill",
    "PolicyFailed.rows": "of the failure that was survived last",
    "KnownReplicas.not_replaced": "reasons why fewer replicas serve, for people",
    "Prefillers.replicas": "those that prefill",
    "Prefillers._serving": "those that serve",
    "PrefillDesk._storages": "of replicas that may ask",
    "HandOverClient._ready": "those that prefill",
    "HandOverClient._desks": "of all replicas that have ever prefilled",
    "RemotePrefill.ready": "those that prefill",
    "ReplicaAsks.sessions": "a bounded number of names; those that time out are not told",
    "Others._ended": "a bounded number of requests that have ended",
    "Others._early": "of requests that were refused on their way; forgotten when a later one comes",
    "Fleet.replicas": "those that serve",
    "FleetSize._replicas": "those that serve",
    "Present._adapters": "those that are loaded",
    "Present._groups": "trainers' groups that were joined",
    "Present._released": "memory that is released",
    "Router.replicas": "those that serve",
    "Scheduler.violations": _TOTALS,
    "StateChecks.properties": _SETTINGS,
    "Storage._told": "what it told last",
    "TierClient.report": "what the storage told last",
    "Totals.ended": _TOTALS,
    "TraceLosses._given_up": "a bounded number of names; what they said may still come",
    "TraceSink._batch": _SETTLES,
    "TimelyScheduler._reminders": _RUN,
    "WatchedRouter.ages": _RUN,
    "WatchedRouter._came_at": _RUN,
    "WeightQuestions._snapshot": "weights to compare with, until the next snapshot",
}
"""Class and attribute of what is not empty at rest -> why."""

_BOOKS = (list, dict, set, deque)
OF_QUESTIONS = (AskExpired, TimeOver)
"""Timers that tell that something has not come in time."""
_ROOMS = ("pawl.actors.", "pawl.loops.", "pawl.lifecycle.")
_OTHERS = ("pawl.actors.runtime.", "pawl.actors.simulation.", "pawl.actors.text.", "pawl.actors.control")
"""Below actors, of no one run, or of one request that a book holds; memory has properties of its own."""


def open_books(roots: Mapping[str, object]) -> Iterator[str]:
    """What is left in books of these objects, and of the objects of ours that they have, in words."""
    seen: set[int] = set()
    stack = list(roots.values())
    while stack:
        thing = stack.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        for name, value in _attributes(thing):
            kind: Any = type(value)
            if _is_book(kind):
                if value and not any(f"{each.__name__}.{name}" in KEPT for each in type(thing).__mro__):
                    yield f"{type(thing).__name__}.{name} has {len(value)}: {value!r:.100}"
            elif _may_keep(kind):
                stack.append(value)
            elif isinstance(value, tuple):
                stack.extend([each for each in value if _may_keep(cast(Any, type(each)))])


def needless_timers(system: SimulatedSystem) -> Iterator[str]:
    """Timers of one actor that will tell it the same: one of them was set though the other was running. And those of
    questions, all of which are answered at rest, and of trainers, of whom nothing is waited for."""
    for driver in system.drivers:
        name, counts = driver.cell.name, Counter(driver.cell.timed())
        yield from (f"{name} waits {count} times for {each}" for each, count in counts.items() if count > 1)
        yield from (f"{name} still waits for {each}" for each in counts if isinstance(each, OF_QUESTIONS))


@cache
def _is_book(kind: Any) -> bool:
    return issubclass(kind, _BOOKS)


@cache
def _may_keep(kind: Any) -> bool:
    """Whether things of this class are ours, and may have books."""
    if not kind.__module__.startswith(_ROOMS) or kind.__module__.startswith(_OTHERS):
        return False
    if issubclass(kind, type | Enum | tuple):
        return False
    # A frozen struct is a message or a setting: it keeps nothing.
    return not (issubclass(kind, msgspec.Struct) and kind.__struct_config__.frozen)


def _attributes(thing: object) -> Iterator[tuple[str, Any]]:
    yield from vars(thing).items() if hasattr(thing, "__dict__") else ()
    kind: Any = type(thing)
    yield from ((name, getattr(thing, name)) for name in _slots_of(kind) if hasattr(thing, name))


@cache
def _slots_of(kind: Any) -> tuple[str, ...]:
    """Names of attributes that are not in the dictionary of things of this class."""
    slots = [each.__dict__.get("__slots__", ()) for each in kind.__mro__]
    names = [name for each in slots for name in ((each,) if isinstance(each, str) else each)]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))
