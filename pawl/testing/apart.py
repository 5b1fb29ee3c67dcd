"""Workloads in which prompts are computed elsewhere: where it shows what prefill and decode replicas owe each other."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.features import server
from pawl.features.request import TOKENS
from pawl.features.row import Seeded, Source, drawn
from pawl.loops.saving import CHOICES
from pawl.memory.prefix.select import CACHES
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Workload, drawn_shape

FEWEST, SHORTEST, LONGEST = 2, 3, 9
"""Requests, and tokens of a prompt."""
MOST_OUTPUT = 3


def apart(seed: int, *, max_requests: int = 5, **shape: Any) -> Workload:
    """Prompts of several pages, some of which begin alike, to replicas that have them computed by others in steps of a
    page or two, most of which take time, and may have room for few of these pages; some clients leave while that goes
    on, and half of the time each replica is a process of its own. Drawn from `seed`; fields of `shape` are fixed."""
    source = Seeded(seed)
    page_size = shape.get("page_size", min(source.pick((1, 2)), shape.get("prefill_chunk", 2)))
    small: dict[str, Any] = {
        "page_size": page_size,
        "num_pages": source.within(5, 9),
        "max_running": source.within(1, 3),
        "prefill_chunk": page_size * source.within(1, 2),
        "step_s": source.pick((0.0, 0.02, 0.02, 0.3)),
        "max_context": None,
        "max_queued": 16,
    }
    others = bool(shape.get("window") or shape.get("max_replicas")) or shape.get("host_pages") == 0
    may = shape.get("cache", CACHES[0]) == CACHES[0] and not others
    if may:
        small |= {
            "host_pages": source.within(4, 16),
            "write_policy": source.pick(CHOICES),
            "cache": CACHES[0],
            "window": None,
        }
    # Of a generator of its own: others are drawn as if it could not be drawn.
    room = Seeded((seed << 32) + 3)
    few = {"prefill_pages": room.within(1, 3)} if may and room.chance(0.4) else {}
    made = _with_replicas(source, drawn_shape(source, small | shape), few | shape, may)
    beginning = tuple(source.pick(TOKENS) for _ in range(LONGEST))
    arrivals = tuple(_arrival(source, made, beginning) for _ in range(source.within(FEWEST, max(FEWEST, max_requests))))
    return Workload(arrivals=arrivals, shape=made, processes=source.chance(0.5))


def _with_replicas(source: Source, made: Shape, fixed: dict[str, Any], may: bool) -> Shape:
    """The shape with replicas that decode, and others that prefill where they `may`."""
    most = fixed.get("max_replicas") or 2
    several: dict[str, Any] = {"replicas": min(source.pick((1, 2)), most), "max_restarts": source.within(0, 2)}
    if may:
        several |= {
            "prefillers": source.within(1, 2),
            "prefill_lease_s": source.pick((0.5, 5.0)),
            "prefill_pages": None,
        }
    several |= {name: value for name, value in fixed.items() if name in several}
    return Shape(
        **drawn(
            server.OF_REPLICAS, source, msgspec.structs.asdict(made) | several, frozenset(several) | frozenset(fixed)
        )
    )


def _arrival(source: Source, made: Shape, beginning: tuple[int, ...]) -> Arrival:
    most = max(1, min(LONGEST, made.room - 1))
    length = source.within(min(SHORTEST, most), most)
    alike = source.within(0, length) if source.chance(0.6) else 0
    prompt = beginning[:alike] + tuple(source.pick(TOKENS) for _ in range(length - alike))
    leaves = source.chance(0.25)
    return Arrival(
        prompt=prompt,
        max_new_tokens=source.within(1, max(1, min(MOST_OUTPUT, made.room - length))),
        after_tokens=source.within(1, 4) if source.chance(0.3) else 0,
        leaves_after=0 if leaves else None,
        timeout_s=source.pick((0.05, 0.2)) if not leaves and source.chance(0.3) else None,
        salt=source.pick(("", "", "salt")),
    )
