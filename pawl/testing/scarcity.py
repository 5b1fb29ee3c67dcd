"""Workloads in which pages are short: where it shows who gives way, what leaves the cache, and what is promised."""

from __future__ import annotations

from typing import Any

from pawl.features.request import TOKENS
from pawl.features.row import Seeded
from pawl.loops.saving import WritePolicy
from pawl.memory.prefix.select import CACHES
from pawl.testing.workload import Arrival, Workload, drawn_shape

FEWEST = 3
LONGEST = 6
"""Tokens of the beginning that prompts have a part of."""
MOST_OUTPUT = 8
LATEST = 10
"""Tokens that clients have been told when a request comes, at the most."""


def scarcity(seed: int, *, max_requests: int = 6, **shape: Any) -> Workload:
    """Requests that begin alike for a while and want more output than there are pages for, half of them when others
    are at work. Drawn from `seed`; fields of `shape` are fixed."""
    source = Seeded(seed)
    few: dict[str, Any] = {
        "page_size": source.pick((1, 2)),
        "num_pages": source.within(5, 9),
        "max_running": source.within(2, 4),
        "lookahead": 0,
        "pacing": source.pick(("overlap", "overlap", "lockstep")),
        "max_context": None,
        "max_queued": 16,
    }
    if source.chance(0.4) and shape.get("cache", CACHES[0]) == CACHES[0] and shape.get("window") is None:
        policy = source.pick(tuple(WritePolicy)).value
        few |= {"host_pages": source.within(4, 16), "write_policy": policy, "cache": CACHES[0], "window": None}
    made = drawn_shape(source, few | shape)
    # With tiers below, two beginnings drive each other out of the device, and who comes back to one has it fetched.
    returning = bool(made.host_pages)
    beginnings = [tuple(source.pick(TOKENS) for _ in range(LONGEST)) for _ in range(1 + returning)]
    arrivals: list[Arrival] = []
    for number in range(source.within(FEWEST, max_requests)):
        own = tuple(source.pick(TOKENS) for _ in range(source.within(1, 2)))
        beginning = beginnings[number % len(beginnings)][: source.within(LONGEST - 2 if returning else 0, LONGEST)]
        prompt = (beginning + own)[: max(1, made.room - 1)]
        output = source.within(1, min(made.room - len(prompt), MOST_OUTPUT))
        told = sum(arrival.max_new_tokens for arrival in arrivals) if returning else LATEST
        later = source.within(1, told) if source.chance(0.5) else 0
        arrivals.append(Arrival(prompt=prompt, max_new_tokens=output, after_tokens=later))
    return Workload(arrivals=tuple(arrivals), shape=made)
