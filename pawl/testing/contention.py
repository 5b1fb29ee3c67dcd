"""Workloads in which many wait for few places: where the order of admission shows."""

from __future__ import annotations

from typing import Any

from pawl.features.request import TOKENS
from pawl.features.row import Seeded, Source
from pawl.testing.workload import Arrival, Workload, drawn_shape

FEWEST = 6
"""Requests: one to three run, the others wait."""
PLAIN: dict[str, Any] = {"page_size": 2, "max_context": None, "max_queued": 16, "host_pages": 0, "window": None}
"""Nobody is refused, and nobody waits for anything but a place."""


def contention(seed: int, *, max_requests: int = 9, **shape: Any) -> Workload:
    """Short requests of equal priority that come almost at once, none of whom gives up, to a server that runs one to
    three of them; many begin alike, and some of these may not share. Drawn from `seed`; fields of `shape` are fixed."""
    source = Seeded(seed)
    few = {"num_pages": source.within(6, 10), "max_running": source.within(1, 3), "lookahead": source.pick((0, 2))}
    page_size = min(PLAIN["page_size"], shape.get("prefill_chunk", PLAIN["page_size"]))
    made = drawn_shape(source, PLAIN | few | {"page_size": page_size} | shape)
    most = max(1, min(4, made.room - 4))
    beginnings = ((), TOKENS[: most - 1])
    arrivals = tuple(
        Arrival(
            prompt=(begun := source.pick(beginnings)) + _letters(source, most - len(begun)),
            max_new_tokens=source.within(1, 3),
            salt=source.pick(("", "", "salt")),
        )
        for _ in range(source.within(FEWEST, max_requests))
    )
    return Workload(arrivals=arrivals, shape=made)


def _letters(source: Source, most: int) -> tuple[int, ...]:
    return tuple(source.pick(TOKENS) for _ in range(source.within(1, most)))
