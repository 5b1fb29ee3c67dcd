"""Simulated engines with host memory below the device: from every checkpoint of a run the rest is judged as a whole."""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec
import pytest

from pawl.actors.control.sessions import OpenSessionByName
from pawl.actors.simulation.exploration import drive, silence
from pawl.actors.simulation.strategies.simple import RandomWalk
from pawl.actors.simulation.system import SimulatedSystem
from pawl.lifecycle.properties.beginning import beginning_of
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import Checkpoint, Record
from pawl.testing.cluster import Cluster
from pawl.testing.models import GHOST
from pawl.testing.replica import record_properties
from pawl.testing.shape import Shape
from pawl.testing.workload import Arrival, Control, Workload


def drawn(seed: int) -> Workload:
    """Requests that share beginnings, some of which have left the device when they are wanted again."""
    chance = random.Random(seed)
    beginnings = [tuple(chance.randint(97, 99) for _ in range(7)) for _ in range(3)]
    arrivals = tuple(
        Arrival(prompt=(*chance.choice(beginnings), 100), max_new_tokens=chance.randint(1, 2), at_s=0.1 * (at // 2))
        for at in range(chance.randint(8, 12))
    )
    shape = Shape(
        num_pages=chance.randint(10, 12),
        page_size=1,
        max_running=chance.choice((1, 2)),
        prefill_chunk=2,
        pacing=chance.choice(("overlap", "lockstep")),
        checkpoint_bytes=400,
        host_pages=32,
    )
    return Workload(arrivals=arrivals, shape=shape)


def turns(seed: int) -> Workload:
    """Turns of one session, most of which go on from others that have finished."""
    chance = random.Random(seed)
    arrivals = [Arrival(prompt=(97, 98, 99), max_new_tokens=3, at_s=0.05, session=True)]
    for at in range(1, 8):
        arrivals.append(
            Arrival(
                prompt=tuple(chance.randint(97, 99) for _ in range(chance.randint(1, 3))),
                max_new_tokens=3,
                at_s=0.1 * (1 + at - chance.choice((0, 0, 1))),
                session=True,
                turn_of=chance.choice((at - 1, at - 1, chance.randrange(at), None)),
                with_previous=chance.random() < 0.5,
                replace=chance.random() < 0.2,
            )
        )
    opened = Control(body=OpenSessionByName(capacity=200, session_id="session"), undo_s=9.0)
    shape = Shape(num_pages=80, page_size=2, max_running=3, pacing="lockstep", checkpoint_bytes=400)
    return Workload(arrivals=tuple(arrivals), controls=(opened,), shape=shape)


def run_of(workload: Workload, seed: int) -> list[Record]:
    source = RandomWalk(seed)
    source.begin()
    with silence():
        run = Cluster(SimulatedSystem(source, seed=1, preempt=False), workload, record_properties, GHOST)
        drive(run)
    return run.trace.records


def checkpoints(records: list[Record]) -> Iterator[tuple[int, Checkpoint]]:
    return ((at, each) for at, each in enumerate(records) if isinstance(each, Checkpoint))


def judge(records: list[Record], what: str) -> None:
    """Nothing is wrong, and nothing is left unjudged."""
    monitor = Monitor(record_properties(GHOST))
    for record in records:
        monitor.observe(record)
    monitor.finish()
    assert monitor.violations == [], what
    assert not any(each.unjudged for each in monitor.properties)


@pytest.mark.parametrize("seeds", [range(1, 4), pytest.param(range(16), marks=pytest.mark.slow)], ids=str)
def test_a_run_with_tiers_is_judged_from_each_of_its_checkpoints(seeds: range) -> None:
    fetching = 0
    for seed in seeds:
        records = run_of(drawn(seed), seed)
        for at, checkpoint in checkpoints(records):
            assert checkpoint.state is not None, checkpoint.missing
            (tiers,) = msgspec.msgpack.decode(checkpoint.state)["companions"]
            fetching += bool(tiers["fetching"]["fetches"])
            judge(records[at:], f"seed {seed}, from record {at}")
    assert fetching, "no checkpoint was taken while a request waited for its pages"


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(16), marks=pytest.mark.slow)], ids=str)
def test_turns_of_a_session_are_judged_from_each_checkpoint(seeds: range) -> None:
    finished, live = 0, 0
    for seed in seeds:
        records = run_of(turns(seed), seed)
        for at, checkpoint in checkpoints(records):
            beginning = beginning_of(checkpoint)
            finished += sum(len(session[6]) for session in beginning.sessions)
            live += sum(len(session[7]) for session in beginning.sessions)
            judge(records[at:], f"seed {seed}, from record {at}")
    assert finished
    assert live
