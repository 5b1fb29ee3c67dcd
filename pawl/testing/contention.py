"""Workloads in which many wait for few places: where the order of admission shows."""

from __future__ import annotations

import random
from typing import Any

from pawl.testing.workload import TOKENS, Arrival, Shape, Workload

FEWEST = 6
"""Requests of a queue: one runs, the others wait."""


def queue(seed: int, *, max_requests: int = 9, **shape: Any) -> Workload:
    """Short requests of equal priority that come almost at once, none of whom gives up, to a server that runs one or
    two of them; drawn from `seed`. Fields of `shape` are fixed."""
    source = random.Random(seed)
    drawn: dict[str, Any] = {
        "num_pages": source.randrange(6, 11),
        "max_running": source.choice((1, 1, 2)),
        "lookahead": source.choice((0, 2)),
        "pacing": source.choice(("overlap", "lockstep")),
        "mixed": source.random() < 0.5,
        "cache": source.choice(("radix", "none")),
    }
    count = source.randrange(FEWEST, max(FEWEST, max_requests) + 1)
    made = Shape(**(drawn | shape))
    most = max(1, min(4, made.num_pages * made.page_size - 4))
    arrivals = tuple(
        Arrival(
            prompt=tuple(source.choice(TOKENS) for _ in range(source.randrange(1, most + 1))),
            max_new_tokens=source.randrange(1, 4),
        )
        for _ in range(count)
    )
    return Workload(arrivals=arrivals, shape=made)
