"""What shrinks a counterexample: workloads that ask less."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from pawl.actors.simulation.exploration import Failure, never
from pawl.testing.workload import DEFAULTS, Arrival, Workload

T = TypeVar("T")
MOST_WORKLOADS = 60
"""Smaller workloads tried to shrink one that fails."""


def smallest(
    workload: T,
    failure: Failure,
    smaller: Callable[[T], Iterable[T]],
    fails: Callable[[T], Failure | None],
    *,
    most: int = MOST_WORKLOADS,
    over: Callable[[], bool] = never,
) -> tuple[T, Failure]:
    """The smallest workload found that still fails, with its failure: one of those that are `smaller` is taken as long
    as it `fails`, and `most` are tried."""
    progress = True
    while progress and most and not over():
        progress = False
        for less in smaller(workload):
            if not most or over():
                break
            most -= 1
            found = fails(less)
            if found is not None:
                workload, failure, progress = less, found, True
                break
    return workload, failure


def smaller(workload: Workload) -> list[Workload]:
    """Workloads that ask less, or of a server with less memory, the greatest step first."""
    found: list[Workload] = []
    arrivals = workload.arrivals
    if workload.encoded:
        found.append(msgspec.structs.replace(workload, encoded=False))
    if workload.processes:
        found.append(msgspec.structs.replace(workload, processes=False))
    if workload.closing is not None:
        found.append(msgspec.structs.replace(workload, closing=None))
    for at in range(len(workload.controls)):
        found.append(msgspec.structs.replace(workload, controls=workload.controls[:at] + workload.controls[at + 1 :]))
    # In less memory fewer requests come into each other's way.
    fewest = max(-(-(len(each.prompt) + each.max_new_tokens) // workload.shape.page_size) for each in arrivals)
    for count in dict.fromkeys((fewest, workload.shape.num_pages - 1)):
        if fewest <= count < workload.shape.num_pages:
            shape = msgspec.structs.replace(workload.shape, num_pages=count)
            found.append(msgspec.structs.replace(workload, shape=shape))
    for index, arrival in enumerate(arrivals):
        before, after = arrivals[:index], arrivals[index + 1 :]
        if before or after:
            found.append(msgspec.structs.replace(workload, arrivals=before + after))
        for less in _less(arrival):
            found.append(msgspec.structs.replace(workload, arrivals=(*before, less, *after)))
    return found


def _less(arrival: Arrival) -> list[Arrival]:
    replace = msgspec.structs.replace
    found = []
    if len(arrival.prompt) > 1:
        found += [replace(arrival, prompt=arrival.prompt[:count]) for count in (len(arrival.prompt) // 2, -1)]
    if arrival.max_new_tokens > 1:
        found += [replace(arrival, max_new_tokens=count) for count in (1, arrival.max_new_tokens - 1)]
    for name, plain in DEFAULTS.items():
        if plain is not msgspec.NODEFAULT and getattr(arrival, name) != plain:
            found.append(replace(arrival, **{name: plain}))
    return found
