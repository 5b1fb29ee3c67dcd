"""Who ends because the worker has no token for it: those whose token means nothing, and nobody else; with nothing left
of it for others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pawl.lifecycle.states import Cause
from pawl.lifecycle.step import StepResult
from pawl.loops.loop import Loop


class Unanswered(NamedTuple):
    """What is so before a result of this kind is handled."""

    requests: frozenset[int]
    """To whom tokens belong that mean nothing."""
    ended: int
    """Requests that have ended by a failure of the server."""
    offered: int
    """Times that pages were offered to the cache."""


def unanswered(loop: Loop, result: StepResult) -> Unanswered | None:
    """None: all tokens mean something, or the step is given up."""
    if result.unusable is None or not loop.in_flight or loop.in_flight[0].step != result.step:
        return None
    scheduled, table = loop.in_flight[0], loop.table
    attempts = dict(zip(scheduled.rows.tolist(), scheduled.attempts.tolist(), strict=True))
    counts = 1 if result.counts is None else result.counts
    rows = set(np.repeat(scheduled.sampled_rows, counts)[result.unusable].tolist())
    requests = frozenset(table.info(row).request for row in rows if table.attempt[row] == attempts[row])
    return Unanswered(requests, loop.counters.by_cause.get(Cause.INTERNAL, 0), num_offered(loop))


def num_offered(loop: Loop) -> int:
    """Times that pages were offered to the cache since the start."""
    count: int = loop.memory.cache.statistics().get("insertions", 0)
    return count


def wrong_after(loop: Loop, before: Unanswered) -> Iterator[tuple[str, int | None]]:
    """What is wrong once the result was handled: in words, and of which request."""
    for request in sorted(before.requests & loop.table.row_of.keys()):
        yield "the worker had no token for it, and it goes on", request
    ended = loop.counters.by_cause.get(Cause.INTERNAL, 0) - before.ended
    if ended != len(before.requests):
        yield f"the worker had no token for {len(before.requests)} requests, and {ended} ended by that", None
