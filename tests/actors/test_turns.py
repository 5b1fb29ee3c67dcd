"""What a request asks of the loop, field by field, and the timer of a step that was made to wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pawl.actors.messages.generate import Generate, Resumed, TextOptions
from pawl.actors.runtime.actor import Actor
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.turn_timer import TurnDue, TurnTimer
from pawl.actors.turns import info_of, turn_of
from pawl.lifecycle.request import SamplingParameters, SessionParameters
from pawl.loops.orders.sessions import BeginTurn

TOKENS, SAMPLING, OPTIONS = np.array([5, 6, 7], np.int32), SamplingParameters(max_new_tokens=9), TextOptions()


def generate(**fields: Any) -> Generate:
    given = {"request": 3, "rid": "r", "tokens": TOKENS, "sampling": SAMPLING, "text_options": OPTIONS}
    return Generate(**given | fields)


def test_a_request_that_comes_is_submitted_now_and_has_nothing_behind_it() -> None:
    info = info_of(generate(age_s=4.0), "space", "w", 50.0)
    assert (info.request, info.rid, info.namespace, info.submitted) == (3, "r", "space", 50.0)
    assert (info.sampling, info.passthrough) == (SAMPLING, OPTIONS)
    assert (info.admitted, info.first_token, info.num_cached, info.num_retractions) == (None, None, 0, 0)
    assert (info.num_resumed, info.num_older) == (0, 0)


@pytest.mark.parametrize(("weights", "num_older"), [("w", 1), ("others", 2)])
@pytest.mark.parametrize("first_token_s", [None, 2.0])
def test_one_that_a_lost_replica_had_has_all_that_it_had_there(
    weights: str, num_older: int, first_token_s: float | None
) -> None:
    output = np.array([8, 9], np.int32)
    counts = {"cached_tokens": 6, "num_retractions": 2, "num_older": 1}
    resumed = Resumed(output=output, admitted_s=3.0, first_token_s=first_token_s, weights="w", **counts)
    info = info_of(generate(resumed=resumed, age_s=4.0), "", weights, 50.0)
    assert (info.submitted, info.admitted) == (46.0, 47.0)
    assert info.first_token == (None if first_token_s is None else 48.0)
    assert (info.num_cached, info.num_retractions, info.num_resumed, info.num_older) == (6, 2, 2, num_older)


def test_a_turn_says_of_which_session_it_is_and_where_it_goes_on() -> None:
    named = SessionParameters(id="s", rid="before", offset=4, replace=True, drop_previous_output=True)
    asked = {"request": 3, "rid": "r", "session": "s", "tokens": (5, 6, 7), "max_new_tokens": 9}
    assert turn_of(generate(scored_from=1), named) == BeginTurn(
        **asked, scored_from=1, parent="before", offset=4, replace=True, drop_previous_output=True
    )
    bare = turn_of(generate(), SessionParameters(id="s"))
    assert (bare.parent, bare.offset, bare.replace, bare.drop_previous_output) == (None, 0, False, False)


class Waiting(Actor):
    """Has a timer, and writes down when it fires."""

    accepts = TurnDue

    def __init__(self) -> None:
        self.timer = TurnTimer(self)
        self.fired: list[float] = []

    def receive(self, message: TurnDue) -> None:
        self.timer.fired()
        self.fired.append(self.context.now())


def test_a_step_that_is_due_later_wakes_its_scheduler_once_at_its_last_time_and_only_where_somebody_waits() -> None:
    actor = Waiting()
    context = ManualContext(actor, "scheduler", time_s=10.0)

    def settle(due_at: float, *, idle: bool = False) -> None:
        loop: Any = SimpleNamespace(limits=SimpleNamespace(due_at=due_at), queues=SimpleNamespace(idle=idle))
        actor.timer.settled(loop, context.now())

    for due_at in (10.0, 9.0):
        settle(due_at)
    settle(12.0, idle=True)
    assert context.timers == []
    settle(12.0)
    settle(12.0)
    assert len(context.timers) == 1
    settle(14.0)
    context.advance(3.0)
    assert (len(context.timers), actor.fired) == (2, [])
    context.advance(3.0)
    assert actor.fired == [14.0]
    settle(14.0)
    settle(17.0)
    settle(16.0)
    settle(0.0)
    context.advance(5.0)
    assert actor.fired == [14.0], "nothing waits to be launched any more"
    settle(22.0)
    context.advance(1.0)
    assert actor.fired == [14.0, 22.0]
