"""The router, driven by hand: what the gateway hears of replicas that are lost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from pawl.actors.control import Ask
from pawl.actors.control.scaling import ScaleReplicas
from pawl.actors.fleet import LEAVING, STARTING, STOPPING
from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Reply, Stalled
from pawl.actors.messages.memory import MemoryReleased
from pawl.actors.messages.replicas import NoneLeft, NotReplaced, ReplicaFailed, ReplicaJoined, ReplicaUp
from pawl.actors.messages.weights import AS_STARTED, WeightsServed
from pawl.actors.names import PREFILL, Names, names_of
from pawl.actors.placement import PLACEMENTS
from pawl.actors.present import SENT
from pawl.actors.router import Router
from pawl.actors.runtime.actor import Down, Lane
from pawl.actors.simulation.manual import ManualContext
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.weight_source import FromBytes
from pawl.loops.adapter import Named
from pawl.loops.intake import Order
from pawl.loops.orders.limits import SetState
from pawl.loops.orders.memory import ReleaseMemory
from pawl.loops.orders.requests import Drain
from pawl.loops.orders.serving import Continue, Pause
from pawl.loops.orders.weight_groups import JoinWeightGroup
from pawl.loops.orders.weights import PutWeights, RenameWeights, UpdateWeights


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


@pytest.mark.parametrize("why", ["a replica is being started", "drains", "lost", "one leaves"])
def test_what_cannot_be_ordered_now_is_refused_at_once_with_the_reason(why: str) -> None:
    router, context, _ = routed(2 if why == "one leaves" else 1)
    order: Any = SetState(max_running=2)
    match why:
        case "drains":
            router.receive(Drain(3.0))
            order, reason = ScaleReplicas(1), STOPPING
        case "one leaves":
            router.replicas[1].leaving = 1
            place = {"master_address": "localhost", "master_port": 1, "rank_offset": 1, "world_size": 2}
            order, reason = JoinWeightGroup(**place, group_name="g", backend="gloo"), LEAVING
        case _:
            router.receive(Down("scheduler.0", "failed"))
            reason = STARTING
    if why == "lost":
        router.receive(ReplicaFailed("no memory"))
        reason = router.fleet.lost
    context.take_sent()
    router.receive(Ask(9, order, "gateway"))
    ((to, reply, lane),) = context.take_sent()
    assert (to, reply.ticket, reply.ok, reply.message, lane) == ("gateway", 9, False, reason, Lane.DATA)


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


NEW, RENAMED = WeightsServed("a", "/new", "new", replica=1), WeightsServed("b", "", "ghost", replica=0)


@pytest.mark.parametrize("leaves", [False, True], ids=["lost", "leaves"])
@pytest.mark.parametrize("renamed", [False, True])
def test_weights_that_only_one_had_taken_go_with_it(renamed: bool, leaves: bool) -> None:
    router, context, _ = routed(2)
    if renamed:
        ordered(router, context, RenameWeights("b", abort_all_requests=False), True, True)
        for number in (0, 1):
            router.receive(msgspec.structs.replace(RENAMED, replica=number))
    ordered(router, context, UpdateWeights(model_path="/new", weight_version="a"), False, True)
    router.receive(NEW)
    assert told(context, WeightsServed)[-1] == NEW
    if leaves:
        router.fleet._left(router.replicas[1])
    else:
        router.receive(Down("scheduler.1", "failed"))
    assert told(context, WeightsServed) == [RENAMED if renamed else AS_STARTED]
    router.receive(ReplicaUp(names_of(2)))
    asked = [sent.message for sent in context.take_sent() if isinstance(sent.message, Ask)]
    assert [ask.message for ask in asked] == [RenameWeights("b", abort_all_requests=False)] * renamed
    if renamed:
        router.receive(msgspec.structs.replace(RENAMED, replica=2))
        router.receive(Reply(asked[0].ticket, True))
    assert sorted(router.replicas) == [0, 2]
    router.receive(NEW)  # of one that is gone
    assert told(context, WeightsServed) == []


def test_who_has_joined_has_the_weights_of_the_others_when_the_only_one_with_later_ones_is_gone() -> None:
    router, context, _ = routed(2)
    rename = RenameWeights("b", abort_all_requests=False)
    ordered(router, context, rename, True, True)
    for number in (0, 1):
        router.receive(msgspec.structs.replace(RENAMED, replica=number))
    for lost, number in ((0, 2), (1, 3)):
        router.receive(Down(f"scheduler.{lost}", "failed"))
        context.take_sent()
        router.receive(ReplicaUp(names_of(number)))
        (ask,) = [sent.message for sent in context.take_sent() if isinstance(sent.message, Ask)]
        assert ask.message == rename
        router.receive(msgspec.structs.replace(RENAMED, replica=number))
        router.receive(Reply(ask.ticket, True))
        if number == 2:
            ordered(router, context, UpdateWeights(model_path="/new", weight_version="a"), True, False)
            router.receive(NEW)
    assert sorted(router.replicas) == [2, 3]


def test_who_was_quicker_with_an_earlier_order_has_the_weights_of_the_later_one() -> None:
    router, context, _ = routed(2)
    orders = [UpdateWeights(model_path=f"/{name}", weight_version=name) for name in "ab"]
    asked: list[Ask] = []
    for order in orders:
        router.receive(Ask(9, order, "gateway"))
        asked += [sent.message for sent in context.take_sent() if isinstance(sent.message, Ask)]
    quick, slow, quick_again, slow_again = (ask.ticket for ask in asked)
    for ticket, done in ((quick, True), (slow_again, False), (quick_again, True), (slow, True)):
        router.receive(Reply(ticket, done))
    for number, name in enumerate("ba"):
        router.receive(WeightsServed(name, f"/{name}", name, replica=number))
    router.fleet._left(router.replicas[1])
    context.take_sent()
    router.receive(ReplicaUp(names_of(2)))
    (ask,) = [sent.message for sent in context.take_sent() if isinstance(sent.message, Ask)]
    assert ask.message == orders[1]


@pytest.mark.parametrize("leaves", [False, True], ids=["lost", "leaves"])
def test_an_order_that_one_takes_with_it_is_answered_when_the_gateway_knows_what_serves_now(leaves: bool) -> None:
    router, context, _ = routed(2)
    router.receive(Ask(9, UpdateWeights(model_path="/new", weight_version="a"), "gateway"))
    other, _ = [sent.message.ticket for sent in context.take_sent() if isinstance(sent.message, Ask)]
    router.receive(NEW)
    router.receive(Reply(other, False, "no such folder"))
    assert told(context, Reply) == []
    if leaves:
        router.fleet._left(router.replicas[1])
    else:
        router.receive(Down("scheduler.1", "failed"))
    said = told(context, WeightsServed | Reply)  # type: ignore[arg-type]
    assert (said[0], [each.ticket for each in said[1:]]) == (AS_STARTED, [9])


@pytest.mark.parametrize("done", [False, True], ids=["refused", "done"])
def test_who_comes_when_nobody_is_left_says_what_it_serves_and_what_it_has_released(done: bool) -> None:
    router, context, _ = routed(1)
    serves, lacks = msgspec.structs.replace(NEW, replica=0), MemoryReleased((MemoryTag.KV_CACHE,), replica=0)
    for message in (serves, lacks):
        router.receive(message)
    ordered(router, context, UpdateWeights(model_path="/new", weight_version="a"), done)
    ordered(router, context, ReleaseMemory(tags=lacks.tags), done)
    router.receive(Down("scheduler.0", "failed"))
    told(context, object)
    router.receive(ReplicaUp(names_of(1)))
    for heard in (NEW, msgspec.structs.replace(lacks, replica=1)) if done else ():
        assert list(router.replicas) == []
        ask = next(sent.message for sent in context.take_sent() if isinstance(sent.message, Ask))
        router.receive(heard)
        router.receive(Reply(ask.ticket, True))
    assert list(router.replicas) == [1]
    kinds = WeightsServed | MemoryReleased | AdaptersNamed
    believed = [sent.message for sent in context.sent if isinstance(sent.message, kinds)]
    assert believed[:2] == ([NEW, lacks] if done else [AS_STARTED, MemoryReleased(())])
    assert [each.adapters for each in believed[2:] if isinstance(each, AdaptersNamed)] == [()]


def test_weights_that_were_sent_to_only_one_keep_nobody_out_once_it_is_gone() -> None:
    router, context, _ = routed(2)
    ordered(router, context, PutWeights(source=FromBytes(b"")), True, False)
    router.receive(msgspec.structs.replace(NEW, replica=0))
    assert router.fleet.questions.present.untellable == SENT
    router.receive(Down("scheduler.0", "failed"))
    assert (told(context, NotReplaced), router.fleet.size.num_starting) == ([], 1)


def ordered(router: Router, context: ManualContext, order: Order, *done: bool) -> None:
    """What the replicas, in the order of their numbers, make of this order."""
    router.receive(Ask(9, order, "gateway"))
    asked = [sent.message for sent in context.take_sent() if isinstance(sent.message, Ask)]
    for ask, ok in zip(asked, done, strict=True):
        router.receive(Reply(ask.ticket, ok))


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
