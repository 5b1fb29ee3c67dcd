"""Messages that go through bytes change nothing, whatever is asked of the engine."""

from __future__ import annotations

from typing import Any

import msgspec

from pawl.actors.messages.execution import Execute
from pawl.actors.simulation.exploration import drive
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.pct import PCT
from pawl.testing import Arrival, Workload
from pawl.testing.cluster import Cluster, cluster
from pawl.testing.replica import quick_properties

WORKLOADS = 40


def run(workload: Workload, seed: int) -> tuple[Cluster, list[tuple[str, Any]]]:
    """The workload under one schedule, and all messages that were delivered, with their receivers."""
    source = PCT(seed)
    source.begin()
    made = cluster(workload, source, properties=quick_properties)
    delivered: list[tuple[str, Any]] = []
    made.system.on_delivery = lambda name, message: delivered.append((name, message))
    with silence():
        drive(made)
    return made, delivered


def test_a_run_has_the_same_messages_and_records_with_and_without_encoding() -> None:
    tiers = [Workload.random(seed, host_pages=4, cache="radix", window=None) for seed in range(WORKLOADS // 4)]
    for seed, workload in enumerate([*map(Workload.random, range(WORKLOADS)), *tiers]):
        plain, encoded = (msgspec.structs.replace(workload, encoded=encoded) for encoded in (False, True))
        (one, delivered), (other, delivered_encoded) = run(plain, seed), run(encoded, seed)
        assert [(name, type(message)) for name, message in delivered] == [
            (name, type(message)) for name, message in delivered_encoded
        ]
        assert one.outcome() == other.outcome()


def test_some_workloads_are_drawn_encoded() -> None:
    encoded = sum(Workload.random(seed).encoded for seed in range(1_000))
    assert 50 < encoded < 200


def test_in_an_encoded_run_nobody_gets_the_senders_own_arrays() -> None:
    workload = Workload(arrivals=(Arrival(prompt=(97, 98), max_new_tokens=3),), encoded=True)
    _, delivered = run(workload, 1)
    batches = [message.batch for _, message in delivered if isinstance(message, Execute)]
    assert batches
    assert not any(batch.slots.flags.writeable for batch in batches)
