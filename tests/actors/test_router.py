"""The router, driven by hand: what a lost replica's requests take along, and whom a replica does not take."""

from __future__ import annotations

import numpy as np

from pawl.actors.messages.generate import (
    Admitted,
    Ended,
    Generate,
    Opened,
    Resumed,
    StepTokens,
    TextOptions,
    Timing,
)
from pawl.actors.messages.replicas import ReplicaUp
from pawl.actors.names import FRONT, ROUTER, Names, names_of
from pawl.actors.placement import RoundRobin
from pawl.actors.router import AGAIN_S, Router
from pawl.actors.runtime.actor import Down
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.turns import info_of
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.states import Cause
from pawl.loops.orders.requests import Abort, Finish

PROMPT = np.array([1, 2, 3], np.int32)


class Starts:
    """Says that each replica is started again; a test tells when it is up."""

    def restart(self, lost: Names, *, again: bool) -> bool:
        return again

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
