"""Workloads of one session with many turns: where it shows what they go on from, and what is left of those that end."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.actors.control.sessions import SIMULATED, OpenSessionByName
from pawl.features import server
from pawl.features.request import TOKENS
from pawl.features.row import Seeded, Source, drawn
from pawl.loops.orders.sessions import CloseSession
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Control, Workload, drawn_shape

FEWEST = 3
EXPIRES_S = 0.2
LATER_S = (0.1, 0.3)
"""When turns come that do not come with the end of others, beside the time after which a session may be over."""


def conversing(seed: int, *, max_requests: int = 7, **shape: Any) -> Workload:
    """Turns that go on from each other: from all, from a part, from one that is live and is to be replaced; some of
    their clients leave. Drawn from `seed`; fields of `shape` are fixed."""
    source = Seeded(seed)
    roomy = {
        "num_pages": source.within(10, 24),
        "page_size": min(2, shape.get("prefill_chunk", 2)),
        "step_s": source.pick((0.0, 0.0, 0.02, 0.1)),
        "max_context": None,
        "max_queued": 16,
    }
    made = drawn_shape(source, roomy | shape)
    made = Shape(**drawn(server.OF_REPLICAS, source, msgspec.structs.asdict(made), frozenset(shape)))
    streaming = source.chance(0.2)
    capacity = source.pick((0, 0, 10, 16, 24))
    opened = OpenSessionByName(capacity, SIMULATED, streaming, source.pick((None, None, EXPIRES_S)))
    controls = [Control(body=opened, undo_s=source.pick((0.0, 0.5, 2.0)))]
    if source.chance(0.15):
        controls.append(Control(body=CloseSession(SIMULATED), after_tokens=source.within(1, 8)))
    count = source.within(FEWEST, max(FEWEST, max_requests))
    turns = tuple(_turn(source, number, streaming=streaming) for number in range(count))
    return Workload(arrivals=turns, shape=made, controls=tuple(controls), processes=source.chance(0.1))


def _turn(source: Source, number: int, *, streaming: bool) -> Arrival:
    """It goes on from the turn before, from an earlier one, or from none. One that replaces comes at times while that
    is live."""
    parent = number - 1 if source.chance(0.7) else source.within(-1, number - 1)
    replaces = not streaming and source.chance(0.35)
    in_work = source.within(1, 12) if source.chance(0.5 if replaces else 0.1) else 0
    late = source.pick(LATER_S) if not in_work and source.chance(0.15) else 0.0
    return Arrival(
        prompt=tuple(source.pick(TOKENS) for _ in range(source.within(1, 3))),
        max_new_tokens=source.within(1, 4),
        session=True,
        turn_of=None if parent < 0 else parent,
        offset=0 if streaming else source.pick((0, 0, 0, 1, 2, -1, -2)),
        replace=replaces,
        drop_previous_output=not streaming and source.chance(0.25),
        at_s=late if number else 0.001,
        after_tokens=in_work if number else 0,
        leaves_after=source.within(0, 2) if source.chance(0.2) else None,
    )
