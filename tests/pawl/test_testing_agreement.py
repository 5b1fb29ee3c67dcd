"""What lasts is the same everywhere, and as the front believes: what differs is told."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest

from pawl.actors.control.limits import SetInternalState
from pawl.actors.messages.control import Reply
from pawl.actors.messages.weights import WeightsServed
from pawl.actors.simulation.exploration import drive
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.simple import Fair
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.machines.serving import Serving
from pawl.loops.adapter import Named
from pawl.loops.recovery import FAILED_ORDER
from pawl.testing import Arrival, Control, PropertyFailed, Workload
from pawl.testing.agreement import check_agreement
from pawl.testing.cluster import Cluster, cluster
from pawl.testing.injection import injected_cluster
from pawl.testing.shape import Shape

SERVED = Workload(arrivals=(Arrival(prompt=(97, 98), max_new_tokens=2),), shape=Shape(replicas=2))


def served() -> Cluster:
    run = cluster(SERVED, Fair())
    with silence():
        drive(run)
    return run


def _limits(run: Any) -> None:
    run.replicas[1].scheduler.loop.limits.now.max_running = 1


def _paused(run: Any) -> None:
    run.replicas[1].scheduler.loop.serving = Serving.PAUSED


def _released(run: Any) -> None:
    run.replicas[1].scheduler.loop.released = frozenset({MemoryTag.WEIGHTS})


def _weights(run: Any) -> None:
    keeper = run.replicas[1].scheduler.intake.weights
    keeper.served = msgspec.structs.replace(keeper.served, fingerprint="other")


def _believed_paused(run: Any) -> None:
    run.desk.paused = True


def _believed_weights(run: Any) -> None:
    run.desk.weights = WeightsServed("other", "", "other")


def _believed_adapters(run: Any) -> None:
    run.desk.adapters = {"a": Named("a", 1, "x", False)}


def _believed_released(run: Any) -> None:
    run.desk.released = (MemoryTag.KV_CACHE,)


@pytest.mark.parametrize(
    ("falsify", "words"),
    [
        (_limits, "limits_hold: what steps are planned within is .* in replica 0, and .* in replica 1"),
        (_paused, "quiescent_flush: whether generation is paused"),
        (_released, "released_is_still: memory that is released"),
        (_weights, "weight_epochs: what is served"),
        (_believed_paused, "quiescent_flush: .* and the gateway believes True"),
        (_believed_weights, "weight_epochs: .* and the gateway believes .'other', 'other'"),
        (_believed_adapters, "adapter_references: what requests may name"),
        (_believed_released, "released_is_still: .* and the gateway believes"),
    ],
)
def test_what_one_has_and_others_do_not_is_told(falsify: Callable[[Any], None], words: str) -> None:
    run = served()
    check_agreement(run)
    falsify(run)
    with pytest.raises(PropertyFailed, match=words):
        check_agreement(run)


@pytest.mark.parametrize(
    ("make", "has_failed", "told"),
    [(cluster, False, True), (injected_cluster, False, True), (injected_cluster, True, False)],
)
def test_who_has_failed_at_an_order_differs_only_where_a_failure_was_planted(
    make: Callable[..., Cluster], has_failed: bool, told: bool
) -> None:
    asked = msgspec.structs.replace(SERVED, controls=(Control(body=SetInternalState(server_args={"max_running": 3})),))
    run: Any = make(asked, Fair())
    run.has_failed = False
    with silence():
        drive(run)
    run.has_failed = has_failed
    _limits(run)
    run.desk.answers[0] = [Reply(0, False, FAILED_ORDER)]
    with pytest.raises(PropertyFailed, match="limits_hold") if told else nullcontext():
        run.checks.check_agreement()
