"""Workloads in which pages are short: where it shows who gives way, what leaves the cache, and what is promised."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pawl.features.request import TOKENS
from pawl.features.row import Seeded, Source
from pawl.loops.saving import WritePolicy
from pawl.memory.prefix.select import CACHES
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Workload, drawn_shape

FEWEST = 3
LONGEST = 6
"""Tokens of the beginning that prompts have a part of."""
MOST_OUTPUT = 8
COMES_BACK = (False, False, True, True, False)
"""Where one comes back beside others: whether each request decodes for long."""
LATEST = 10
"""Tokens that clients have been told when a request comes, at the most."""


def scarcity(seed: int, *, max_requests: int = 6, **shape: Any) -> Workload:
    """Requests that begin alike for a while and want more output than there are pages for, half of them when others
    are at work. Drawn from `seed`; fields of `shape` are fixed."""
    source = Seeded(seed)
    few: dict[str, Any] = {
        "page_size": min(source.pick((1, 2)), shape.get("prefill_chunk", 2)),
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
    comes_back = bool(made.host_pages) and max_requests >= len(COMES_BACK) and source.chance(0.5)
    arrivals = _one_comes_back(source, made) if comes_back else _alike(source, made, max_requests)
    return Workload(arrivals=tuple(arrivals), shape=made)


def _alike(source: Source, made: Shape, max_requests: int) -> Iterator[Arrival]:
    """Requests that begin alike. With tiers below there are two beginnings, which drive each other out of the device,
    and who comes back to one has it fetched."""
    returning, told = bool(made.host_pages), 0
    beginnings = [_letters(source, LONGEST) for _ in range(1 + returning)]
    for number in range(source.within(FEWEST, max_requests)):
        own = _letters(source, source.within(1, 2))
        beginning = beginnings[number % len(beginnings)][: source.within(LONGEST - 2 if returning else 0, LONGEST)]
        prompt = (beginning + own)[: max(1, made.room - 1)]
        output = source.within(1, min(made.room - len(prompt), MOST_OUTPUT))
        most = told if returning else LATEST
        later = source.within(1, most) if source.chance(0.5) else 0
        told += output
        yield Arrival(prompt=prompt, max_new_tokens=output, after_tokens=later)


def _one_comes_back(source: Source, made: Shape) -> Iterator[Arrival]:
    """Two long beginnings one after the other, then two requests that decode for long and grow, and beside them one
    that comes back to the first: what it fetches is kept from those that grow, until it has come."""
    beginnings = [_letters(source, made.page_size * source.within(3, 5)) for _ in range(2)]
    prompts = (beginnings[0], beginnings[1], (), (), beginnings[0])
    for number, (beginning, long) in enumerate(zip(prompts, COMES_BACK, strict=True)):
        prompt = (beginning + _letters(source, 1))[: max(1, made.room - 1)]
        output = min(source.within(4, MOST_OUTPUT) if long else 1, made.room - len(prompt))
        later = (0, 1, 2, 2, 2 + source.within(1, 5))[number]
        yield Arrival(prompt=prompt, max_new_tokens=output, after_tokens=later)


def _letters(source: Source, count: int) -> tuple[int, ...]:
    return tuple(source.pick(TOKENS) for _ in range(count))
