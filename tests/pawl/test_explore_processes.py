"""Processes of replicas die, freeze or are cut off under explored schedules: clients get what they get undisturbed."""

from __future__ import annotations

import msgspec
import pytest

from pawl.actors.control.serving import PauseGeneration
from pawl.actors.simulation.faults import Faults
from pawl.exploration.task import faults_of, workload_of
from pawl.loops.orders.adapters import LoadAdapter
from pawl.loops.orders.weights import UpdateWeights
from pawl.testing import Workload, explore_workload
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Control
from tests.mutants.hunting import task_with

SHAPE = Shape(replicas=2, max_restarts=2, max_loras=1, max_loaded_loras=2, num_pages=12)
ARRIVALS = tuple(
    Arrival(prompt=(97, 98, 97 + n % 2), max_new_tokens=4, at_s=(0.0, 0.001, 0.3)[n % 3], seed=n) for n in range(4)
)
CHANGED = Workload(
    arrivals=ARRIVALS,
    shape=SHAPE,
    controls=(
        Control(body=LoadAdapter(name="x", path="ghost:a")),
        Control(body=UpdateWeights(model_path="ghost:b", weight_version="b"), at_s=0.001),
        Control(body=PauseGeneration(mode="in_place"), at_s=0.001, undo_s=0.2),
    ),
    processes=True,
)


@pytest.mark.parametrize("kind", ["kill", "freeze", "part"])
def test_streams_outlive_the_loss_of_whole_processes(kind: str) -> None:
    outcome = explore_workload(CHANGED, "random", 4, seed=3, faults=Faults(**{kind: 2}), replayed=False)
    assert outcome.found is None, outcome.found
    assert outcome.reached["lost replica"]
    assert not outcome.reached["end by internal"]


def test_when_no_process_is_left_everybody_is_told() -> None:
    workload = Workload(arrivals=ARRIVALS, shape=Shape(replicas=2), processes=True)
    outcome = explore_workload(workload, "random", 4, seed=1, faults=Faults(kill=2), replayed=False)
    assert outcome.found is None, outcome.found
    assert outcome.reached["end by internal"]


def test_requests_are_resumed_where_their_replica_is_lost_in_the_middle_of_them() -> None:
    long = msgspec.structs.replace(CHANGED, controls=())
    counts = {}
    for in_work in (False, True):
        outcome = explore_workload(long, "random", 40, seed=3, faults=Faults(kill=1, in_work=in_work), replayed=False)
        assert outcome.found is None, outcome.found
        counts[in_work] = outcome.reached["resumed request"]
    assert counts[True] > 2 * counts[False] > 0, counts


def test_the_default_command_loses_replicas_in_the_middle_of_requests_where_they_are_processes() -> None:
    task = task_with([], 0, 0.0)
    drawn = [(workload_of(task, seed), seed) for seed in range(300)]
    losing = [(workload, faults) for workload, seed in drawn if (faults := faults_of(task, seed, workload)).in_work]
    assert len(losing) > 15
    assert all(workload.processes and workload.shape.replicas > 1 for workload, _ in losing)
    assert {faults.kill + faults.freeze + faults.part for _, faults in losing} == {1, 2, 3}
    assert {name for _, faults in losing for name in ("kill", "freeze", "part") if getattr(faults, name)} == {
        *("kill", "freeze", "part")
    }
    assert not any(faults_of(task._replace(faults=0), seed, workload).in_work for workload, seed in drawn)
