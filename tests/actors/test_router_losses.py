"""The router, driven by hand: what the gateway hears of replicas that are lost."""

from __future__ import annotations

from typing import Any

from pawl.actors.messages.control import Stalled
from pawl.actors.messages.replicas import NoneLeft, ReplicaFailed
from pawl.actors.names import Names, names_of
from pawl.actors.placement import PLACEMENTS
from pawl.actors.router import Router
from pawl.actors.runtime.actor import Down
from pawl.actors.simulation.manual import ManualContext


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
