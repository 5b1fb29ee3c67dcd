"""Requests that were drawn plain ask something of their tokens, and stay what they were in all else."""

from __future__ import annotations

import msgspec

from pawl.exploration.task import workload_of
from pawl.testing import scarcity
from pawl.testing.sprinkled import OF_TOKENS, sprinkled
from pawl.testing.workload import DEFAULTS
from tests.mutants.hunting import task_with

PLAIN = {name: DEFAULTS[name] for name in OF_TOKENS}


def test_size_time_and_server_stay_and_every_field_of_tokens_is_asked_for_now_and_then() -> None:
    asked: set[str] = set()
    for seed in range(60):
        plain = scarcity(seed)
        more = sprinkled(plain, seed)
        assert more == sprinkled(plain, seed)
        bare = tuple(msgspec.structs.replace(each, **PLAIN) for each in more.arrivals)
        assert msgspec.structs.replace(more, arrivals=bare) == plain
        for each in more.arrivals:
            assert (each.stop_after or 1) <= max(1, each.max_new_tokens)
            assert each.min_new_tokens <= each.max_new_tokens
            asked |= {name for name, value in PLAIN.items() if getattr(each, name) != value}
    assert asked == set(OF_TOKENS)


def test_some_of_the_workloads_that_an_exploration_draws_plain_are_sprinkled() -> None:
    task, found = task_with([], 0, 0.0), [0, 0]
    for seed in range(120):
        workload = workload_of(task, seed)
        if workload.arrivals and workload.arrivals == scarcity(seed).arrivals:
            found[0] += 1
        elif tuple(msgspec.structs.replace(each, **PLAIN) for each in workload.arrivals) == scarcity(seed).arrivals:
            found[1] += 1
    assert min(found) > 3
