"""Workloads in which orders come one after the other while replicas come and go: where it shows what lasts."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.actors.control import ROWS, row_of
from pawl.actors.control.adapters import NAMES, drawn_load
from pawl.features import server
from pawl.features.request import TOKENS
from pawl.features.row import Seeded, Source, drawn
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Control, Workload, drawn_shape

ORDERS = (
    *("set-state", "set-state", "slow-down", "update-weights", "scale-replicas", "scale-replicas"),
    *("load-adapter", "unload-adapter", "unload-adapter", "pause", "pause", "release-memory", "resume-memory"),
    *("flush-cache", "abort"),
)
"""Of the rows of control messages."""
FEWEST, MOST = 3, 7
MOST_TRIES = 2000
"""A row draws nothing most of the time."""
TIMES_S = (0.0, 0.001, 0.1, 0.5, 1.0)


def steering(seed: int, *, max_requests: int = 7, **shape: Any) -> Workload:
    """Several orders, the last of which come when replicas have been started and have left, to servers of one to three
    replicas; short requests before, between and after them. Drawn from `seed`; fields of `shape` are fixed."""
    source = Seeded(seed)
    small: dict[str, Any] = {
        "num_pages": source.within(8, 16),
        "step_s": source.pick((0.0, 0.02, 0.1, 0.1)),
        "max_context": None,
        "max_queued": 16,
    }
    if source.chance(0.6):
        small |= {"max_loras": source.within(1, 2), "max_loaded_loras": source.within(2, 4)}
    made = _with_replicas(source, drawn_shape(source, small | shape), shape)
    bodies = [drawn_load(source, name) for name in NAMES if made.max_loras and source.chance(0.7)]
    orders = [Control(body=body) for body in bodies]
    orders += [_order(source) for _ in range(source.within(FEWEST, MOST))]
    arrivals = tuple(_arrival(source, made) for _ in range(source.within(2, max_requests)))
    return Workload(arrivals=arrivals, shape=made, controls=tuple(orders), processes=source.chance(0.3))


def _with_replicas(source: Source, made: Shape, fixed: dict[str, Any]) -> Shape:
    several: dict[str, Any] = {"replicas": source.within(1, 3), "max_restarts": source.within(0, 2)}
    several["max_replicas"] = 0 if source.chance(0.2) else several["replicas"] + source.within(1, 2)
    if several["max_replicas"]:
        several |= {"scale_at": source.pick((0, 0, 1, 2)), "scale_up_s": 0.01, "scale_down_s": source.pick((0.05, 0.5))}
    several |= {name: value for name, value in fixed.items() if name in several}
    if fixed.get("prefillers"):
        several |= {name: 0 for name in ("max_replicas", "scale_at") if name not in fixed}
    given = msgspec.structs.asdict(made) | several
    return Shape(**drawn(server.OF_REPLICAS, source, given, frozenset(several) | frozenset(fixed)))


def _order(source: Source) -> Control:
    name = source.pick(ORDERS)
    row = next(row for row in ROWS if row.name == name)
    body = next(body for _ in range(MOST_TRIES) if (body := row.draw(source)) is not None)
    undo_s = source.pick((0.001, 0.5, 2.0)) if row_of(body).undone_by is not None else 0.0
    in_work = source.within(1, 8) if source.chance(0.4) else 0
    return Control(body=body, at_s=source.pick(TIMES_S), after_tokens=in_work, undo_s=undo_s)


def _arrival(source: Source, made: Shape) -> Arrival:
    length = source.within(1, max(1, min(10, made.room - 2)))
    return Arrival(
        prompt=tuple(source.pick(TOKENS) for _ in range(length)),
        max_new_tokens=source.within(1, min(8, made.room - length)),
        at_s=source.pick((*TIMES_S, 2.5)),
        adapter=source.pick(("", *NAMES, *NAMES)) if made.max_loras else "",
        leaves_after=source.pick((None, None, None, 0, 1)),
        timeout_s=source.pick((None, None, None, 0.5)),
    )
