"""What the router says of adapters that replicas load, let make way and refuse each by themselves."""

from __future__ import annotations

from typing import Any

import pytest

from pawl.actors.control import Ask
from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Reply
from pawl.actors.names import FRONT
from pawl.actors.simulation.manual import ManualContext
from pawl.loops.adapter import Named, already_loaded, still_loading
from pawl.loops.orders.adapters import LoadAdapter, LoadNumberedAdapter, UnloadAdapter
from tests.actors.test_router import carried_out, ordered, routed, told_next

LOAD, UNLOAD = LoadAdapter(name="x", path="/x"), UnloadAdapter(name="x")
X, Y = Named("x", 1, "/x", False), Named("y", 2, "/y", False)


def said(context: ManualContext, kind: type) -> list[Any]:
    return [each for each in context.take(FRONT.gateway) if isinstance(each, kind)]


def test_one_that_rests_in_a_replica_before_another_one_has_read_it_may_be_named() -> None:
    router, context = routed(2)
    router.receive(AdaptersNamed((X,), 0))
    router.receive(AdaptersNamed((Y,), 0, resting=(X,)))
    router.receive(AdaptersNamed((X,), 1))
    assert said(context, AdaptersNamed) == [
        AdaptersNamed(()),
        AdaptersNamed(()),
        AdaptersNamed((), resting=(X,)),
    ]
    router.receive(AdaptersNamed((Y,), 1, resting=(X,)))
    router.receive(AdaptersNamed((Y,), 1))
    assert said(context, AdaptersNamed) == [AdaptersNamed((Y,), resting=(X,)), AdaptersNamed((Y,))]


def test_a_name_of_which_replicas_have_different_adapters_is_nobodys() -> None:
    router, context = routed(2)
    router.receive(AdaptersNamed((X,), 0, resting=(Y,)))
    router.receive(AdaptersNamed((X._replace(number=3),), 1, resting=(Y._replace(number=4),)))
    assert said(context, AdaptersNamed)[-1] == AdaptersNamed(())


def test_a_load_of_a_name_that_all_list_is_refused_by_the_router() -> None:
    router, context = routed(2)
    ordered(router, LOAD, 0, 1)
    for replica in (0, 1):
        router.receive(AdaptersNamed((X,), replica))
    context.take(FRONT.gateway)
    router.receive(Ask(7, LOAD, FRONT.gateway))
    (reply,) = said(context, Reply)
    assert (reply.ticket, reply.ok, reply.message) == (7, False, already_loaded("x"))
    assert reply.body == {"loaded_adapters": {"x": "/x"}}
    assert told_next(context, 0) == told_next(context, 1) == []
    ordered(router, UNLOAD, 0, 1)
    for replica in (0, 1):
        router.receive(AdaptersNamed((), replica))
    router.receive(Ask(8, LOAD, FRONT.gateway))
    assert told_next(context, 0) == told_next(context, 1) == [LoadNumberedAdapter(name="x", path="/x", number=2)]


@pytest.mark.parametrize("there", [(AdaptersNamed((X,), 0), AdaptersNamed((), 1)), (AdaptersNamed((X,), 0, (Y,)),)])
def test_a_load_of_a_name_that_only_some_list_is_given_to_all(there: tuple[AdaptersNamed, ...]) -> None:
    router, context = routed(2)
    for each in there:
        router.receive(each)
    router.receive(Ask(1, LOAD, FRONT.gateway))
    assert told_next(context, 0) == told_next(context, 1) == [LoadNumberedAdapter(name="x", path="/x", number=1)]


@pytest.mark.parametrize(
    ("order", "answer"), [(LOAD, already_loaded("x")), (UNLOAD, still_loading("x"))], ids=["load", "unload"]
)
def test_while_a_load_is_under_way_its_name_is_not_to_be_had(order: Any, answer: str) -> None:
    """One replica may be done, which would do it, and another one at it, which would refuse."""
    router, context = routed(2)
    router.receive(Ask(1, LOAD, FRONT.gateway))
    carried_out(router, 0)
    router.receive(Ask(2, order, FRONT.gateway))
    assert [(reply.ticket, reply.ok, reply.message) for reply in said(context, Reply)] == [(2, False, answer)]
    carried_out(router, 1)
    assert told_next(context, 0) == []
    router.receive(Ask(3, order, FRONT.gateway))
    assert len(told_next(context, 0)) == len(told_next(context, 1)) == 1


def test_an_unload_that_not_all_have_carried_out_makes_room_for_a_load_at_once() -> None:
    router, context = routed(2)
    for replica in (0, 1):
        router.receive(AdaptersNamed((X,), replica))
    router.receive(Ask(1, UNLOAD, FRONT.gateway))
    router.receive(Ask(2, LOAD, FRONT.gateway))
    assert told_next(context, 1) == [UNLOAD, LoadNumberedAdapter(name="x", path="/x", number=1)]
