"""How many steps are enough for what has arrived: so many are no violation, and one more is."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from pawl.lifecycle.properties.progress import BoundedProgress
from pawl.lifecycle.records import Delivered, Started, StepRolledBack, Submitted
from pawl.lifecycle.states import Event
from tests.lifecycle.story import LOOP, PAGE_SIZE, Story

STORY = Story()
STORY.start()
STORY.submit(1, 0, 5, 3)
STARTED, SUBMITTED, _ = STORY.records
SIZES = ((5, 3), (9, 0), (1, 7))


class Bench:
    """The property, and a history with nobody at work."""

    def __init__(self, sizes: Iterable[tuple[int, int]], **loop: Any) -> None:
        self.property = BoundedProgress()
        step = SimpleNamespace(starts=np.zeros(1, int), ends=np.ones(1, int))
        self.history: Any = SimpleNamespace(step=step, open={1: 0}, in_flight={}, number=1)
        assert isinstance(STARTED, Started)
        started = structs.replace(STARTED, config=STARTED.config | {"loop": dict(LOOP) | loop})
        self.property._started(started, self.history)
        self.property._limits.start(started)
        self.submit(sizes)

    def submit(self, sizes: Iterable[tuple[int, int]]) -> None:
        assert isinstance(SUBMITTED, Submitted)
        for prompt, outputs in sizes:
            sampling = structs.replace(SUBMITTED.sampling, max_new_tokens=outputs)
            tokens = np.zeros(prompt, np.int32)
            self.property._submitted(structs.replace(SUBMITTED, tokens=tokens, sampling=sampling), self.history)

    def rest(self) -> None:
        self.history.open.clear()
        end: Any = SimpleNamespace(event=Event.FINISH)
        self.property._ended(end, self.history)
        self.history.open[1] = 0

    def enough(self) -> int:
        """Steps until the first that is too many."""
        record: Any = SimpleNamespace(step=1)
        for count in range(100_000):
            if self.property._planned(record, self.history):
                return count
        raise AssertionError("any number is enough")


def bound(sizes: Iterable[tuple[int, int]], chunk: int, depth: int, *, mixed: bool) -> int:
    """As the docs state it."""
    chunks = [-(-(prompt + outputs) // chunk) for prompt, outputs in sizes]
    weights = [chunk + outputs + 1 for chunk, (_, outputs) in zip(chunks, sizes, strict=True)]
    others = [0 if mixed else sum(chunks) - own for own in chunks]
    return (depth + 2) * sum(weight * (1 + other) for weight, other in zip(weights, others, strict=True))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(("pacing", "depth"), [("lockstep", 0), ("overlap", 1)])
def test_the_bound_is_the_one_that_is_stated(pacing: str, depth: int, mixed: bool) -> None:
    loop = {"pacing": pacing, "mixed": mixed, "prefill_chunk": 2 * PAGE_SIZE + 1}
    for sizes in (SIZES[:1], SIZES):
        assert Bench(sizes, **loop).enough() == bound(sizes, 2 * PAGE_SIZE, depth, mixed=mixed)


def test_smaller_chunks_count_for_all_that_came_since_the_last_rest_and_larger_ones_from_the_next_on() -> None:
    loop = {"pacing": "lockstep", "mixed": False, "prefill_chunk": 3 * PAGE_SIZE}
    bench = Bench(SIZES, **loop)
    for chunk in (PAGE_SIZE, 2 * PAGE_SIZE):
        bench.property._ordered(Delivered("set_state", {"prefill_chunk": chunk}, 0, 0.0), bench.history)
    assert bench.enough() == bound(SIZES, PAGE_SIZE, 0, mixed=False)
    bench.rest()
    bench.submit(SIZES)
    assert bench.enough() == bound(SIZES, 2 * PAGE_SIZE, 0, mixed=False)


def test_each_loss_begins_the_count_anew_and_after_a_rest_there_was_none() -> None:
    loop = {"pacing": "lockstep", "mixed": True, "prefill_chunk": PAGE_SIZE}
    once = bound(SIZES, PAGE_SIZE, 0, mixed=True)
    bench = Bench(SIZES, **loop)
    lost = StepRolledBack(1, "lost", 0.0, blameless=False)
    bench.property._rolled_back(lost, bench.history)
    bench.history.in_flight = {2: None}  # one of several that are lost together
    bench.property._rolled_back(lost, bench.history)
    assert bench.enough() == 2 * once
    for kind, fields, times in (
        ("runner_gone", {}, 1),
        ("pause", {"retract": True}, 2),
        ("pause", {"retract": False}, 1),
    ):
        bench = Bench(SIZES, **loop)
        bench.history.in_flight = {2: None}
        bench.property._ordered(Delivered(kind, fields, 0, 0.0), bench.history)
        assert bench.enough() == times * once, kind
    bench = Bench(SIZES, **loop)
    bench.property._ordered(Delivered("runner_gone", {}, 0, 0.0), bench.history)
    assert bench.enough() == 2 * once
    bench.rest()
    bench.submit(SIZES)
    assert bench.enough() == once
