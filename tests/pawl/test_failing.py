"""Lines that raise as a schedule has it: where, again, smaller, and what it must find."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pawl.actors.simulation.choice import Choices
from pawl.actors.simulation.exploration import drive, replay
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.simple import RandomWalk
from pawl.exploration.task import faults_of, workload_of
from pawl.loops.recovery import recover
from pawl.testing import explore_workload, replay_schedule
from pawl.testing.exploring import load_schedule, scenario_of
from pawl.testing.failing import FailingCluster
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Workload
from tests.mutants.hunting import task_with
from tests.mutants.mutant import Edit, Group, Mutant, planted

ONE = Faults(fail=1)
ASKED = Workload(
    arrivals=(
        Arrival(prompt=(1, 2, 3, 4, 5), max_new_tokens=4),
        Arrival(prompt=(1, 2, 3, 4, 6, 7), max_new_tokens=5, stop_after=3),
        Arrival(prompt=(4, 4), max_new_tokens=5, leaves_after=2, after_tokens=2),
    ),
    shape=Shape(prefill_chunk=4),
)
BELIEVED = Mutant(
    "memory is believed",
    Group.MEMORY,
    "conservation",
    "",
    "what was changed by half is gone on with",
    (Edit(recover, "loop.memory.replace(loop.fresh_memory(), written)", "pass"),),
)


def test_lines_of_many_actors_raise_and_at_most_one_request_ends() -> None:
    struck: list[str] = []
    for seed in range(24):
        strategy = RandomWalk(seed)
        strategy.begin()
        with silence():
            case = scenario_of(ASKED, ONE)(strategy)
            drive(case)
        assert isinstance(case, FailingCluster)
        assert case.has_failed is bool(case.system.faults.struck)
        struck += case.system.faults.struck
    assert len(struck) >= 9
    assert len({place.split(":")[0] for place in struck}) >= 5
    assert all(place.startswith("fail ") for place in struck)


def test_what_raised_raises_again_there() -> None:
    outcome = explore_workload(ASKED, "pos", 8, seed=3, faults=ONE, confirm_every=1)
    assert outcome.found is None, str(outcome.found)
    assert outcome.result.confirmed == 8
    assert outcome.reached["line that raises"] >= 4


def test_what_a_line_that_raises_shows_becomes_smaller_and_is_replayed(tmp_path: Path) -> None:
    one = msgspec.structs.replace(ASKED, arrivals=ASKED.arrivals[:1])
    with planted(BELIEVED):
        outcome = explore_workload(one, "random", 60, seed=2, faults=ONE)
        assert outcome.found is not None
        path = tmp_path / "schedule.json"
        outcome.found.save(path)
        assert any(label.endswith(" fails: yes") for _, _, label in Choices.load(path).deviations())
        assert len(Choices.load(path).deviations()) <= 6
        assert type(replay_schedule(load_schedule(path))) is type(outcome.found.failure.shrunk_error)
    assert "faults so far: ['fail " in str(outcome.found)
    replay(scenario_of(outcome.found.workload, outcome.found.faults), outcome.found.failure.shrunk)


def test_the_default_command_draws_them_beside_lost_steps_alone() -> None:
    task = task_with([], 0, 0.0)
    drawn = [faults_of(task, seed, workload_of(task, seed)) for seed in range(300)]
    failing = [faults for faults in drawn if faults.fail]
    assert 10 <= len(failing) <= 45
    assert all(faults == Faults(fail=1, strike=faults.strike) for faults in failing)
    assert not any(faults_of(task._replace(faults=0), seed, ASKED).fail for seed in range(100))


def test_tokens_cut_off_behind_a_stop_token_are_counted_as_they_are_recorded() -> None:
    stopped = Arrival(
        prompt=(98, 98, 98, 97, 97),
        max_new_tokens=4,
        stop_token_ids=(97,),
        min_new_tokens=2,
        logit_bias=((97, 60.0), (98, 60.0)),
    )
    others = [
        Arrival(prompt=prompt, max_new_tokens=count) for prompt, count in (((97,), 3), ((98, 97, 98), 2), ((97,), 1))
    ]
    drafts = {"speculate": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4}
    shape = Shape(num_pages=5, prefill_chunk=2, checkpoint_bytes=8000, **drafts)  # type: ignore[arg-type]
    asked = Workload(arrivals=(stopped, *others), shape=shape)
    outcome = explore_workload(asked, "pct", 5, shrink=False)
    assert outcome.found is None, str(outcome.found)
    assert outcome.reached["checkpoint"]
