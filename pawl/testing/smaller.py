"""What shrinks a counterexample: fewer faults, a plainer server, workloads that ask less."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from pawl.actors.simulation.exploration import Failure, never
from pawl.actors.simulation.faults import FaultKind, Faults
from pawl.actors.simulation.shrinking import halves
from pawl.features import server
from pawl.loops.policy import POLICIES
from pawl.memory.prefix.select import CACHES
from pawl.testing.shape import Shape
from pawl.testing.workload import DEFAULTS, Arrival, Workload

T = TypeVar("T")
MOST_TRIED = 100
"""Smaller ones that are tried to shrink one that fails."""
PLAIN = msgspec.structs.asdict(Shape())
SERVED = frozenset({"num_pages", "scheduler"})
"""Fields of a server that are never plain: less memory is less, and a scheduler of one's own is what is looked at."""
replace = msgspec.structs.replace


class Tried(NamedTuple):
    """What may be made smaller beside the schedule."""

    workload: Workload
    faults: Faults


def smallest(
    tried: T,
    failure: Failure,
    smaller: Callable[[T], Sequence[T]],
    fails: Callable[[T, Failure], Failure | None],
    *,
    most: int = MOST_TRIED,
    over: Callable[[], bool] = never,
) -> tuple[T, Failure]:
    """The smallest one found that still fails, with its failure. Of those that are `smaller` each is taken that
    `fails`, which is told of the failure of the one before; then those of that one from the same place on. `most` are
    tried, and none once it is `over`."""
    less, at, taken = smaller(tried), 0, False
    while most and not over():
        if at >= len(less):
            if not taken:
                break
            at, taken = 0, False
            continue
        most -= 1
        found = fails(less[at], failure)
        if found is None:
            at += 1
        else:
            tried, failure, taken = less[at], found, True
            less = smaller(tried)
    return tried, failure


def smaller(tried: Tried) -> list[Tried]:
    """The greatest steps first: faults, features of the server, requests, then what they ask."""
    workload, faults = tried
    found = [Tried(workload, less) for less in _fewer_faults(faults)]
    plainer = [replace(workload, shape=less) for less in _plainer(workload.shape)]
    return found + [Tried(less, faults) for less in (*plainer, *_fewer(workload), *_less_memory(workload))]


def _fewer_faults(faults: Faults) -> Iterator[Faults]:
    kinds = [kind.value for kind in FaultKind if faults.budget(kind)]
    for counts in [dict.fromkeys(kinds, 0)] * (len(kinds) > 1) + [{kind: 0} for kind in kinds]:
        yield replace(faults, **counts)
    for kind in kinds:
        if getattr(faults, kind) > 1:
            yield replace(faults, **{kind: 1})


def _plainer(shape: Shape) -> Iterator[Shape]:
    """With features as they are by default: all of them, half of them, and so on."""
    values = msgspec.structs.asdict(shape)
    kept = {*SERVED, *(["policy"] * (shape.policy not in POLICIES)), *(["cache"] * (shape.cache not in CACHES))}
    features: dict[tuple[str, ...], dict[str, Any]] = {}
    for feature in reversed(server.FEATURES):  # replicas, which cost most, come first
        fields = tuple(name for name in feature.fields if name not in kept and values[name] != PLAIN[name])
        if fields:
            features[fields] = {name: PLAIN[name] for name in fields}
    plain = list(features.values())
    for size in halves(len(plain)):
        for first in range(0, len(plain), size):
            less = replace(
                shape, **{name: value for each in plain[first : first + size] for name, value in each.items()}
            )
            try:
                less.check()
            except ValueError:
                continue  # something else needs it
            yield less


def _fewer(workload: Workload) -> Iterator[Workload]:
    """Requests and orders that are left out, many at once first; then requests that ask less."""
    for name, plain in (("encoded", False), ("processes", False), ("closing", None)):
        if getattr(workload, name) != plain:
            yield replace(workload, **{name: plain})
    for name in ("controls", "arrivals"):
        every = getattr(workload, name)
        for size in halves(len(every)):
            for first in range(0, len(every), size):
                rest = (*every[:first], *every[first + size :])
                if rest or name == "controls":
                    yield replace(workload, **{name: rest})
    arrivals = workload.arrivals
    plain_ones = tuple(Arrival(prompt=each.prompt, max_new_tokens=each.max_new_tokens) for each in arrivals)
    if len(arrivals) > 1 and plain_ones != arrivals:
        yield replace(workload, arrivals=plain_ones)
    for index, arrival in enumerate(arrivals):
        for less in _less(arrival):
            yield replace(workload, arrivals=(*arrivals[:index], less, *arrivals[index + 1 :]))


def _less_memory(workload: Workload) -> Iterator[Workload]:
    """In less memory fewer requests come into each other's way."""
    shape = workload.shape
    fewest = max(-(-(len(each.prompt) + each.max_new_tokens) // shape.page_size) for each in workload.arrivals)
    for count in dict.fromkeys((fewest, shape.num_pages - 1)):
        if fewest <= count < shape.num_pages:
            yield replace(workload, shape=replace(shape, num_pages=count))


def _less(arrival: Arrival) -> Iterator[Arrival]:
    plain = Arrival(prompt=arrival.prompt, max_new_tokens=arrival.max_new_tokens)
    extra = [name for name in DEFAULTS if getattr(arrival, name) != getattr(plain, name)]
    if len(extra) > 1:
        yield plain
    if len(arrival.prompt) > 1:
        yield from (replace(arrival, prompt=arrival.prompt[:count]) for count in (len(arrival.prompt) // 2, -1))
    if arrival.max_new_tokens > 1:
        yield from (replace(arrival, max_new_tokens=count) for count in (1, arrival.max_new_tokens - 1))
    for name in extra:
        yield replace(arrival, **{name: getattr(plain, name)})
