"""Workloads in which long and short prompts are computed beside each other: where it shows whose turn it is."""

from __future__ import annotations

from typing import Any

from pawl.features.request import TOKENS
from pawl.features.row import Seeded, Source
from pawl.testing.workload import Arrival, Workload, drawn_shape

FEWEST = 4
LONGEST = 24
"""Tokens of a prompt."""
SHORT = 4
"""So many times is the longest prompt as long as a short one, or more."""


def crowding(seed: int, *, max_requests: int = 9, **shape: Any) -> Workload:
    """A long prompt, and some of any length that come while a few pages of it are computed in each step; many of these
    begin alike. Drawn from `seed`; fields of `shape` are fixed."""
    source = Seeded(seed)
    page_size = shape.get("page_size", min(source.pick((1, 2)), shape.get("prefill_chunk", 2)))
    few = {
        "page_size": page_size,
        "prefill_chunk": page_size * source.within(1, 4),
        "num_pages": source.within(16, 48),
        "max_running": source.within(3, 6),
        "lookahead": source.pick((0, 2)),
        "max_context": None,
        "max_queued": 16,
    }
    made = drawn_shape(source, few | shape)
    longest = max(1, min(LONGEST, made.room - 2))
    beginnings = ((), _letters(source, longest // SHORT))
    lengths = [longest]
    for _ in range(source.within(FEWEST, max_requests) - 1):
        lengths.append(source.within(1, longest if source.chance(0.3) else max(1, longest // SHORT)))
    arrivals = tuple(
        Arrival(
            prompt=(source.pick(beginnings) + _letters(source, length))[:length],
            max_new_tokens=source.within(1, min(made.room - length, 3)),
            priority=source.pick((0, 0, 1)),
            after_tokens=source.pick((0, 0, 0, 1, 3)) if number else 0,
        )
        for number, length in enumerate(lengths)
    )
    return Workload(arrivals=arrivals, shape=made)


def _letters(source: Source, count: int) -> tuple[int, ...]:
    return tuple(source.pick(TOKENS) for _ in range(count))
