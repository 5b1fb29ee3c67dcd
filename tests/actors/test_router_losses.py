"""The router, driven by hand: what the gateway hears of replicas that are lost."""

from __future__ import annotations

from typing import Any

from pawl.actors.control import Ask
from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Reply, Stalled
from pawl.actors.messages.replicas import NoneLeft, NotReplaced, ReplicaFailed, ReplicaJoined, ReplicaUp
from pawl.actors.names import PREFILL, Names, names_of
from pawl.actors.placement import PLACEMENTS
from pawl.actors.present import SENT
from pawl.actors.router import Router
from pawl.actors.runtime.actor import Down, Lane
from pawl.actors.simulation.manual import ManualContext
from pawl.lifecycle.weight_source import FromBytes
from pawl.loops.adapter import Named
from pawl.loops.orders.requests import Drain
from pawl.loops.orders.serving import Continue, Pause
from pawl.loops.orders.weights import PutWeights


class Starts:
    """A starter that says it starts whatever is lost."""

    def __init__(self) -> None:
        self.overs: list[tuple[str, str]] = []

    def restart(self, lost: Names, *, why_not: str = "") -> str:
        return why_not

    def over(self, name: str, reason: str) -> None:
        self.overs.append((name, reason))


def routed(count: int) -> tuple[Router, ManualContext, Starts]:
    starts = Starts()
    router = Router(PLACEMENTS["round_robin"](16, 8), [names_of(number) for number in range(count)], starts)
    return router, ManualContext(router, "router"), starts


def told(context: ManualContext, kind: type) -> list[Any]:
    return [sent.message for sent in context.take_sent() if sent.to == "gateway" and isinstance(sent.message, kind)]


def test_a_stall_goes_with_the_replica_that_stalled() -> None:
    router, context, _ = routed(2)
    router.receive(Stalled(0.0, oldest_step_s=2.0, replica=1))
    router.receive(Stalled(31.0, replica=0))
    assert told(context, Stalled)[-1].seconds == 31.0
    router.receive(Down("scheduler.0", "failed"))
    assert told(context, Stalled) == [Stalled(0.0, oldest_step_s=2.0, replica=1)]
    router.receive(Down("scheduler.1", "failed"))
    assert told(context, Stalled) == [Stalled(0.0)]


def test_when_the_last_replica_cannot_be_started_again_the_gateway_hears_why() -> None:
    router, context, starts = routed(1)
    router.receive(Down("scheduler.0", "failed"))
    assert told(context, NoneLeft) == []
    router.receive(ReplicaFailed("no memory"))
    why = "a replica that was started", "no memory"
    assert (told(context, NoneLeft), starts.overs) == ([NoneLeft(*why)], [why])


def test_an_adapter_that_only_the_lost_replica_did_not_have_yet_may_be_named() -> None:
    router, context, _ = routed(2)
    mine = (Named("x", 1, "ghost:b", pinned=False),)
    router.receive(AdaptersNamed(mine, replica=0))
    assert told(context, AdaptersNamed) == [AdaptersNamed(())]
    router.receive(Down("scheduler.1", "failed"))
    assert told(context, AdaptersNamed) == [AdaptersNamed(mine)]


def test_a_replica_that_is_started_again_does_what_was_ordered_last_and_not_what_was_answered_last() -> None:
    router, context, _ = routed(1)
    router.receive(Ask(1, Pause()))
    router.receive(Ask(2, Continue()))
    pause, go_on = [sent.message.ticket for sent in context.take_sent() if isinstance(sent.message, Ask)]
    for ticket in (go_on, pause):  # once the last step has come back
        router.receive(Reply(ticket, True))
    router.receive(Down("scheduler.0", "failed"))
    router.receive(ReplicaUp(names_of(1)))
    assert not [sent for sent in context.take_sent() if isinstance(sent.message, Ask)]
    assert list(router.replicas) == [1]


def test_a_replica_that_comes_after_weights_were_sent_is_refused_with_the_reason() -> None:
    router, context, _ = routed(2)
    router.receive(Ask(1, PutWeights(source=FromBytes(b""))))
    mine, _ = [sent.message.ticket for sent in context.take_sent() if isinstance(sent.message, Ask)]
    router.receive(Down("scheduler.1", "failed"))
    router.receive(Reply(mine, True))
    router.receive(ReplicaUp(names_of(2)))
    (refused,) = told(context, NotReplaced)
    assert refused.reason.endswith(SENT)
    assert list(router.replicas) == [0]


def test_the_gateway_hears_of_each_replica_that_takes_requests_and_of_none_that_prefills() -> None:
    router, context, _ = routed(1)
    router.receive(Down("scheduler.0", "failed"))
    router.receive(ReplicaUp(names_of(1)))
    router.receive(ReplicaUp(names_of(2, PREFILL)))
    assert told(context, ReplicaJoined) == [ReplicaJoined("recorder.0"), ReplicaJoined("recorder.1")]


def test_who_takes_part_while_the_server_drains_drains_too() -> None:
    router, context, _ = routed(1)
    router.receive(Down("scheduler.0", "failed"))
    router.receive(Drain(3.0))
    router.receive(ReplicaUp(names_of(1)))
    assert [sent for sent in context.take_sent() if sent.to == "scheduler.1"] == [
        ("scheduler.1", Drain(3.0), Lane.CONTROL)
    ]
