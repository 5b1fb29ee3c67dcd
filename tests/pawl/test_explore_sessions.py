"""Turns of sessions beside what else may end them on their way."""

from __future__ import annotations

from pawl.actors.control.sessions import OpenSessionByName
from pawl.actors.simulation.quiet import silence
from pawl.loops.orders.adapters import LoadAdapter, UnloadAdapter
from pawl.testing import Arrival, Shape, Workload, explore_workload
from pawl.testing.workload import Control


def test_a_turn_whose_adapter_is_unloaded_on_its_way_is_refused_for_that() -> None:
    turn = Arrival(prompt=(98,), max_new_tokens=1, at_s=0.001, adapter="x", priority=1, salt="salt", session=True)
    other = Arrival(
        prompt=(97, 97, 97, 97, 98, 97),
        max_new_tokens=3,
        at_s=0.001,
        adapter="z",
        priority=1,
        salt="salt",
        stop_after=3,
        seed=26,
    )
    controls = (
        Control(body=LoadAdapter(name="x", path="ghost:a")),
        Control(body=OpenSessionByName(capacity=60, session_id="session", expires_s=0.2), undo_s=0.001),
        Control(body=UnloadAdapter(name="x"), at_s=0.001),
    )
    shape = Shape(
        num_pages=5,
        max_running=2,
        lookahead=1,
        pacing="pipeline",
        stage_s=(0.1,),
        cache_core="auto",
        max_queued=3,
        max_loras=2,
        max_loaded_loras=4,
        checkpoint_bytes=8000,
    )
    workload = Workload(arrivals=(turn, other), controls=controls, shape=shape)
    with silence():
        outcome = explore_workload(workload, "random", 60, seed=1, shrink=False, replayed=False)
    assert outcome.found is None, str(outcome.found)
