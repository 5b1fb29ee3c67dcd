"""A pipeline in virtual time: its stages are all at work."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from pawl.actors.simulation.choice import Kind, Option
from pawl.actors.simulation.exploration import explore
from pawl.actors.simulation.strategies.simple import Fair
from pawl.lifecycle.records import StepCommitted
from pawl.testing import Arrival, Shape, Workload
from pawl.testing.cluster import Cluster
from pawl.testing.exploring import scenario_of

STAGE_S = 0.01


class HostFirst(Fair):
    """The worker waits for its device only when nobody else has anything to do: as if the host took no time."""

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        host = [index for index, option in enumerate(options) if option.label != "worker settles"]
        return host[0] if host else 0


def steps_per_second(stages: int, pacing: str) -> float:
    """Of a server with many requests and no prompts to speak of, while all are at work."""
    count, source, made = 4 * stages, random.Random(0), list[Cluster]()
    prompts = [tuple(source.randrange(97, 123) for _ in range(3)) for _ in range(count)]
    workload = Workload(
        arrivals=tuple(Arrival(prompt=prompt, max_new_tokens=30, timeout_s=900.0) for prompt in prompts),
        shape=Shape(num_pages=32 * count, max_running=count, pacing=pacing, stages=stages, stage_s=(STAGE_S,) * stages),
    )

    def scenario(source: object) -> Cluster:
        made.append(scenario_of(workload)(source))  # type: ignore[arg-type]
        return made[-1]

    result = explore(scenario, HostFirst(), 1, max_steps=1_000_000)
    assert result.failure is None, result.failure
    times = [record.time for record in made[0].trace.records if isinstance(record, StepCommitted)]
    middle = times[len(times) // 4 : -len(times) // 4]
    return (len(middle) - 1) / (middle[-1] - middle[0])


@pytest.mark.parametrize("stages", [2, 4])
def test_a_pipeline_of_equal_stages_computes_as_many_steps_at_a_time_as_it_has_stages(stages: int) -> None:
    one_at_a_time = 1 / (stages * STAGE_S)
    assert steps_per_second(stages, "lockstep") == pytest.approx(one_at_a_time)
    assert steps_per_second(stages, "pipeline") >= 0.9 * stages * one_at_a_time


def test_who_draws_every_token_in_the_step_before_keeps_one_stage_at_work() -> None:
    assert steps_per_second(4, "overlap") == pytest.approx(steps_per_second(4, "lockstep"))
