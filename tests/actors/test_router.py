"""The router, driven by hand: what a lost replica's requests take along."""

from __future__ import annotations

import numpy as np

from pawl.actors.messages.generate import Admitted, Generate, Opened, Resumed, StepTokens, TextOptions, Timing
from pawl.actors.names import ROUTER, Names, names_of
from pawl.actors.placement import RoundRobin
from pawl.actors.router import Router
from pawl.actors.runtime.actor import Down
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.turns import info_of
from pawl.lifecycle.request import SamplingParameters

PROMPT = np.array([1, 2, 3], np.int32)


class NobodyStarts:
    """Starts no replica again."""

    def restart(self, lost: Names, *, again: bool) -> bool:
        return False

    def over(self, name: str, reason: str) -> None: ...


def routed(count: int) -> tuple[Router, ManualContext]:
    """A router before so many replicas, which take turns."""
    router = Router(RoundRobin(4), [names_of(number) for number in range(count)], NobodyStarts())
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
