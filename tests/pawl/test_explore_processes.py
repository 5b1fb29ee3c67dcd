"""Processes of replicas die, freeze or are cut off under explored schedules: clients get what they get undisturbed."""

from __future__ import annotations

import pytest

from pawl.actors.control.serving import PauseGeneration
from pawl.actors.simulation.faults import Faults
from pawl.loops.orders.adapters import LoadAdapter
from pawl.loops.orders.weights import UpdateWeights
from pawl.testing import Workload, explore_workload
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Control

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
