"""The router, driven by hand: what a lost replica's requests take along, whom a replica does not take, and what
the next replica is told."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from pawl.actors.control import Ask
from pawl.actors.fleet import OTHER_WEIGHTS
from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Reply
from pawl.actors.messages.generate import (
    Admitted,
    Ended,
    Generate,
    Opened,
    Resumed,
    StepTokens,
    TextOptions,
    Timing,
    Usage,
)
from pawl.actors.messages.replicas import NotReplaced, ReplicaUp
from pawl.actors.messages.weights import WeightsServed
from pawl.actors.names import FRONT, ROUTER, Names, names_of
from pawl.actors.placement import RoundRobin
from pawl.actors.present import SENT
from pawl.actors.routed import Routed, count
from pawl.actors.router import AGAIN_S, Router
from pawl.actors.runtime.actor import Down
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.turns import info_of
from pawl.lifecycle.request import SamplingParameters, SessionParameters
from pawl.lifecycle.states import Cause
from pawl.lifecycle.weight_source import FromBytes
from pawl.loops.adapter import Named
from pawl.loops.orders.adapters import LoadAdapter, LoadNumberedAdapter
from pawl.loops.orders.cache import FlushCache
from pawl.loops.orders.limits import SetState
from pawl.loops.orders.requests import Abort, Finish
from pawl.loops.orders.serving import Pause
from pawl.loops.orders.sessions import CloseSession, OpenSession
from pawl.loops.orders.weights import PutWeights, UpdateWeights

PROMPT = np.array([1, 2, 3], np.int32)


class Starts:
    """Says that each replica is started again; a test tells when it is up."""

    def restart(self, lost: Names, *, why_not: str = "") -> str:
        return why_not

    def over(self, name: str, reason: str) -> None: ...


def routed(count: int) -> tuple[Router, ManualContext]:
    """A router before so many replicas, which take turns."""
    router = Router(RoundRobin(4), [names_of(number) for number in range(count)], Starts())
    return router, ManualContext(router, ROUTER)


def asked(request: int) -> Generate:
    sampling = SamplingParameters(temperature=0.0, max_new_tokens=8)
    return Generate(request=request, rid=f"r{request}", tokens=PROMPT, sampling=sampling, text_options=TextOptions())


def given(context: ManualContext, replica: int) -> list[Generate]:
    """Requests that this replica was given since the last call."""
    return [each for each in context.take(f"scheduler.{replica}") if isinstance(each, Generate)]


def opens(router: Router, request: int, replica: int) -> None:
    router.receive(Opened(0, request, TextOptions(), len(PROMPT), PROMPT, replica=replica))


def draws(router: Router, replica: int, weights: str, *tokens: int, admitted: tuple[Admitted, ...] = ()) -> None:
    """The replica's only request gets these tokens, each in a step of its own."""
    for token in tokens:
        row, drawn = np.zeros(1, np.int32), np.array([token], np.int32)
        router.receive(StepTokens(row, drawn, admitted=admitted, weights=weights, replica=replica))


def is_lost(router: Router, context: ManualContext, replica: int) -> None:
    context.gone.add(f"scheduler.{replica}")
    router.receive(Down(f"scheduler.{replica}", "failed"))


def test_a_request_says_from_which_token_on_the_weights_that_drew_last_have_drawn_it() -> None:
    router, context = routed(3)
    router.receive(asked(1))
    opens(router, 1, replica=0)
    draws(router, 0, "a", 10, admitted=(Admitted(0, 0, Timing(0.0, 0.0)),))
    draws(router, 0, "b", 11, 12)
    is_lost(router, context, 0)
    for replica in (1, 2):  # the second has drawn nothing for it when it is lost, whatever it drew for others
        (again,) = given(context, replica)
        assert again.resumed is not None
        assert (again.resumed.output.tolist(), again.resumed.weights, again.resumed.num_older) == ([10, 11, 12], "b", 1)
        opens(router, 1, replica)
        is_lost(router, context, replica)


@pytest.mark.parametrize(("tokens", "first_token_s"), [([10, 11], 6.0), ([], None)])
def test_times_of_a_request_that_goes_on_elsewhere_are_told_from_now(tokens: list[int], first_token_s: float) -> None:
    """Clocks of processes differ."""
    admitted = Admitted(0, 7, Timing(1.0, 2.0))
    known = Routed(asked(1), 1.0, 0, tokens, admitted=admitted, first_token=4.0, weights="a", num_lost=2)
    again = known.again(10.0)
    assert again.resumed is not None
    assert (again.age_s, again.resumed.admitted_s, again.resumed.first_token_s) == (9.0, 8.0, first_token_s)
    assert (again.resumed.cached_tokens, again.resumed.num_retractions, again.resumed.weights) == (7, 2, "a")


def test_a_replica_has_as_much_to_do_as_all_its_requests_together() -> None:
    router, _ = routed(2)
    for request in (1, 2, 3):  # in turn
        router.receive(asked(request))
    router.routed[3].tokens += [10, 11]
    count(router.replicas, router.routed)
    counted = [(each.num_open, each.num_tokens) for each in router.replicas.values()]
    assert counted == [(2, 2 * len(PROMPT) + 2), (1, len(PROMPT))]


def test_a_lost_replica_that_says_late_that_it_has_opened_a_request_is_not_heard() -> None:
    router, context = routed(2)
    router.receive(asked(1))
    is_lost(router, context, 0)
    context.take_sent()
    before = [(each.num_open, each.num_tokens) for each in router.replicas.values()]
    opens(router, 1, replica=0)
    assert context.take_sent() == []
    assert [(each.num_open, each.num_tokens) for each in router.replicas.values()] == before == [(1, len(PROMPT))]
    assert router.num_contained == 0


def test_an_abort_of_several_reaches_all_of_them_each_at_its_replica() -> None:
    router, context = routed(2)
    for request in (1, 2, 3, 4):
        router.receive(asked(request))
    given(context, 0), given(context, 1)
    router.receive(Abort((1, 2, 3, 4), Cause.CLIENT, "enough"))
    told = [[each for each in context.take(f"scheduler.{n}") if isinstance(each, Abort)] for n in (0, 1)]
    assert told == [[Abort((1, 3), Cause.CLIENT, "enough")], [Abort((2, 4), Cause.CLIENT, "enough")]]


def test_all_that_end_in_one_step_are_forgotten() -> None:
    router, _ = routed(1)
    for request in (1, 2, 3):
        router.receive(asked(request))
        router.receive(Opened(request, request, TextOptions(), len(PROMPT), PROMPT, replica=0))
    none = np.zeros(0, np.int32)
    ended = tuple(Ended(row, row, Cause.LENGTH, Usage(3, 1, 0), Timing(0.0)) for row in (1, 2, 3))
    router.receive(StepTokens(none, none, ended=ended, replica=0))
    assert (router.routed, [each.num_open for each in router.replicas.values()]) == ({}, [0])


def test_whatever_a_step_says_of_rows_is_passed_on_of_the_requests_that_have_them() -> None:
    """Rows are a replica's own, and other replicas have the same."""
    router, context = routed(1)
    rows = {3: 1, 70: 2, 0: 5}  # more than the first table has
    for row, request in rows.items():
        router.receive(asked(request))
        router.receive(Opened(row, request, TextOptions(), len(PROMPT), PROMPT, replica=0))
    context.take(FRONT.detokenizer)
    scores: Any = {row: f"scores of {row}" for row in rows}  # nobody looks at them here
    vectors = {row: np.full(2, row, np.float32) for row in rows}
    router.receive(
        StepTokens(
            np.array([70, 0, 70], np.int32),
            np.array([11, 12, 13], np.int32),
            prompt_logprobs=tuple(scores.items()),
            ended=tuple(
                Ended(row, request, Cause.LENGTH, Usage(3, 1, 0), Timing(0.0)) for row, request in rows.items()
            ),
            admitted=tuple(Admitted(row, row, Timing(0.0, 0.0)) for row in rows),
            embeddings=tuple(vectors.items()),
            replica=0,
        )
    )
    (told,) = context.take(FRONT.detokenizer)
    assert (told.rows.tolist(), told.tokens.tolist()) == ([2, 5, 2], [11, 12, 13])
    assert [(end.row, end.request) for end in told.ended] == [(1, 1), (2, 2), (5, 5)]
    assert [(each.row, each.cached_tokens) for each in told.admitted] == [(1, 3), (2, 70), (5, 0)]
    assert told.prompt_logprobs == ((1, "scores of 3"), (2, "scores of 70"), (5, "scores of 0"))
    assert [(stream, vector.tolist()) for stream, vector in told.embeddings] == [
        (1, [3, 3]),
        (2, [70, 70]),
        (5, [0, 0]),
    ]


def test_all_output_is_older_where_other_weights_serve_whatever_they_are_called() -> None:
    resumed = Resumed(
        output=np.array([10, 11, 12], np.int32),
        cached_tokens=0,
        num_retractions=1,
        admitted_s=0.0,
        first_token_s=0.0,
        weights="b",
        num_older=1,
    )
    sampling = SamplingParameters(temperature=0.0, max_new_tokens=8)
    message = Generate(
        request=1, rid="r1", tokens=PROMPT, sampling=sampling, text_options=TextOptions(), resumed=resumed
    )
    assert [info_of(message, "", weights, 0.0).num_older for weights in ("a", "b")] == [3, 1]


def ends(context: ManualContext) -> list[Ended]:
    """Ends that the detokenizer was told since the last call."""
    told = context.take(FRONT.detokenizer)
    return [end for each in told if isinstance(each, StepTokens) for end in each.ended]


def test_a_new_request_whose_replica_is_gone_before_anybody_has_said_so_goes_to_another() -> None:
    router, context = routed(2)
    context.gone.add("scheduler.0")
    router.receive(asked(1))
    context.advance(AGAIN_S)
    (taken,) = given(context, 1)
    assert taken.resumed is None
    assert taken.age_s == AGAIN_S
    assert ends(context) == []


def test_new_requests_wait_for_as_long_as_the_only_replica_is_gone_and_nobody_has_said_so() -> None:
    router, context = routed(1)
    context.gone.add("scheduler.0")
    for request in (1, 2):
        router.receive(asked(request))
    context.advance(10 * AGAIN_S)
    is_lost(router, context, 0)
    router.receive(ReplicaUp(names_of(1)))
    assert [each.request for each in given(context, 1)] == [1, 2]
    context.advance(AGAIN_S)
    assert given(context, 1) == []
    assert ends(context) == []


def test_requests_that_wait_for_room_wait_for_one_timer() -> None:
    router, context = routed(1)
    context.full.add("scheduler.0")
    for request in (1, 2):
        router.receive(asked(request))
    assert len(context.timers) == 1
    context.advance(AGAIN_S)
    assert (len(context.timers), given(context, 0)) == (2, [])
    context.full.clear()
    context.advance(AGAIN_S)
    assert (len(context.timers), [each.request for each in given(context, 0)]) == (2, [1, 2])


def test_a_request_that_waits_for_room_ends_as_soon_as_its_client_leaves() -> None:
    router, context = routed(1)
    context.full.add("scheduler.0")
    for request in (1, 2):
        router.receive(asked(request))
    router.receive(Abort((1,), Cause.DISCONNECT))
    assert [(end.request, end.cause) for end in ends(context)] == [(1, Cause.DISCONNECT)]
    context.full.clear()
    context.advance(AGAIN_S)
    assert [each.request for each in given(context, 0)] == [2]


def test_an_order_for_a_request_that_was_placed_late_waits_until_its_replica_has_it() -> None:
    router, context = routed(1)
    context.full.add("scheduler.0")
    router.receive(asked(1))
    context.full.clear()
    router.receive(asked(2))
    context.advance(AGAIN_S)
    assert [each.request for each in given(context, 0)] == [2, 1]
    router.receive(Abort((1, 2), Cause.DISCONNECT))
    assert [each.requests for each in context.take("scheduler.0")] == [(2,)]
    opens(router, 1, replica=0)
    assert [each.requests for each in context.take("scheduler.0")] == [(1,)]


def test_a_request_that_is_aborted_twice_ends_for_the_first_cause_at_the_next_replica_as_well() -> None:
    router, context = routed(2)
    router.receive(asked(7))
    opens(router, 7, replica=0)
    router.receive(Abort((7,), Cause.DISCONNECT))
    router.receive(Abort((7,), Cause.INTERNAL, "unreadable"))
    is_lost(router, context, 0)
    opens(router, 7, replica=1)
    assert context.take("scheduler.1")[1:] == [Abort((7,), Cause.DISCONNECT)]


def test_an_end_that_its_client_has_had_waits_for_the_replica_that_takes_the_request_again() -> None:
    router, context = routed(2)
    router.receive(asked(7))
    opens(router, 7, replica=0)
    draws(router, 0, "a", 10)
    is_lost(router, context, 0)
    router.receive(Finish(7, num_output=1))
    assert [type(each) for each in context.take("scheduler.1")] == [Generate]
    opens(router, 7, replica=1)
    assert context.take("scheduler.1") == [Finish(7, num_output=1)]


def ordered(router: Router, order: Any, *replicas: int, ok: bool = True) -> None:
    """The gateway gives an order, and these replicas carry it out."""
    router.receive(Ask(1, order, FRONT.gateway))
    carried_out(router, *replicas, ok=ok)


def carried_out(router: Router, *replicas: int, ok: bool = True) -> None:
    """These replicas answer what they were asked last."""
    context: Any = router.context
    for replica in replicas:
        for asked_now in [each for each in context.take(f"scheduler.{replica}") if isinstance(each, Ask)]:
            router.receive(Reply(asked_now.ticket, ok, "" if ok else "no such folder"))


def told_next(context: ManualContext, replica: int) -> list[Any]:
    """Orders that this replica was given since the last call."""
    return [each.message for each in context.take(f"scheduler.{replica}") if isinstance(each, Ask)]


def test_a_replica_that_is_started_again_takes_requests_once_it_was_told_all_that_lasts() -> None:
    router, context = routed(2)
    for order in (
        UpdateWeights(model_path="/old", weight_version="a"),
        LoadAdapter(name="x", path="/x"),
        UpdateWeights(model_path="/new", abort_all_requests=True),
        SetState(max_running=4),
        SetState(max_queued=9),
        Pause(),
        FlushCache(),
    ):
        ordered(router, order, 0, 1)
    ordered(router, UpdateWeights(model_path="/nowhere"), 0, 1, ok=False)
    for replica in (0, 1):
        router.receive(AdaptersNamed((Named("x", 1, "/x", False),), replica=replica))
        router.receive(WeightsServed("a", "/new", "f", replica=replica))
    is_lost(router, context, 1)
    router.receive(ReplicaUp(names_of(2)))
    router.receive(asked(1))
    assert [each.request for each in given(context, 0)] == [1]
    told: list[Any] = []
    while orders := told_next(context, 2):
        told += orders
        router.receive(WeightsServed("a", "/new", "f", replica=2))
        router.receive(Reply(router.fleet.questions.asks._next_ticket - 1, True))
    assert told == [
        UpdateWeights(model_path="/new", weight_version="a"),
        LoadNumberedAdapter(name="x", path="/x", number=1),
        SetState(max_running=4, max_queued=9),
        Pause(),
    ]
    router.receive(asked(2))
    router.receive(asked(3))
    assert len(given(context, 2)) == 1


def test_a_replica_does_not_take_part_while_it_is_not_known_what_became_of_an_order() -> None:
    router, context = routed(2)
    is_lost(router, context, 1)
    router.receive(Ask(1, SetState(max_running=4), FRONT.gateway))
    router.receive(ReplicaUp(names_of(2)))
    assert 2 not in router.replicas
    carried_out(router, 0)
    assert told_next(context, 2) == [SetState(max_running=4)]
    router.receive(Reply(router.fleet.questions.asks._next_ticket - 1, True))
    assert 2 in router.replicas


def test_a_replica_that_joins_is_told_what_comes_meanwhile_at_once_as_the_others_are() -> None:
    router, context = routed(2)
    is_lost(router, context, 1)
    router.receive(Ask(1, SetState(max_running=4), FRONT.gateway))
    router.receive(ReplicaUp(names_of(2)))
    carried_out(router, 0)
    ordered(router, Pause(), 0)
    assert told_next(context, 2) == [SetState(max_running=4), Pause()]
    assert 2 not in router.replicas
    last = router.fleet.questions.asks._next_ticket - 1
    for ticket in range(1, last + 1):
        router.receive(Reply(ticket, True))
    assert 2 in router.replicas


def test_an_adapter_has_one_number_in_all_replicas_whatever_one_of_them_has_refused() -> None:
    router, context = routed(2)
    router.receive(Ask(1, LoadAdapter(name="x", path="/x"), FRONT.gateway))
    carried_out(router, 0, ok=False)
    carried_out(router, 1)
    router.receive(Ask(2, LoadAdapter(name="x", path="/x"), FRONT.gateway))
    for replica in (0, 1):
        assert told_next(context, replica) == [LoadNumberedAdapter(name="x", path="/x", number=2)]


def turn(request: int) -> Generate:
    return msgspec.structs.replace(asked(request), session=SessionParameters("s"))


def test_a_session_is_with_its_replica_until_that_one_has_said_that_it_is_closed() -> None:
    router, context = routed(2)
    opening, closing = OpenSession("s", 0), CloseSession("s")
    ordered(router, opening, 0)
    router.receive(asked(1))
    context.take("scheduler.0")
    router.receive(Ask(2, closing, FRONT.gateway))
    router.receive(turn(2))
    router.receive(Ask(3, opening, FRONT.gateway))
    router.receive(turn(3))
    told = context.take("scheduler.0")
    assert [each.message if isinstance(each, Ask) else each.request for each in told] == [closing, 2, opening, 3]
    for order in (each for each in told if isinstance(each, Ask)):
        router.receive(Reply(order.ticket, True))
    router.receive(turn(4))
    assert [each.request for each in given(context, 0)] == [4]
    ordered(router, closing, 0)
    ordered(router, opening, 1)
    router.receive(turn(5))
    assert [each.request for each in given(context, 1)] == [5]


def test_where_weights_were_sent_a_lost_replica_is_not_started_again_and_people_are_told_why() -> None:
    router, context = routed(2)
    ordered(router, PutWeights(source=FromBytes(b"")), 0, 1)
    is_lost(router, context, 0)
    (told,) = [each for each in context.take(FRONT.gateway) if isinstance(each, NotReplaced)]
    assert SENT in told.reason
    ordered(router, UpdateWeights(model_path="/new"), 1)
    is_lost(router, context, 1)
    assert [each for each in context.take(FRONT.gateway) if isinstance(each, NotReplaced)] == []


def test_when_the_engine_stops_nobody_joins_any_more() -> None:
    router, context = routed(2)
    is_lost(router, context, 1)
    router.receive(Ask(1, UpdateWeights(model_path="/new"), FRONT.gateway))
    router.receive(ReplicaUp(names_of(2)))
    router.receive(WeightsServed("default", "/new", "f", replica=0))
    context.take(FRONT.gateway)
    router.stopped("enough")
    (told,) = context.take(FRONT.gateway)
    assert isinstance(told, Reply)
    assert told.message == "the engine stopped: enough"


def test_a_replica_that_serves_other_weights_than_the_others_does_not_take_part() -> None:
    router, context = routed(2)
    ordered(router, UpdateWeights(model_path="/new"), 0, 1)
    for replica in (0, 1):
        router.receive(WeightsServed("default", "/new", "f", replica=replica))
    is_lost(router, context, 1)
    router.receive(ReplicaUp(names_of(2)))
    router.receive(WeightsServed("default", "/new", "written over since", replica=2))
    carried_out(router, 2)
    assert sorted(router.replicas) == [0]
    (told,) = [each for each in context.take(FRONT.gateway) if isinstance(each, NotReplaced)]
    assert OTHER_WEIGHTS in told.reason
