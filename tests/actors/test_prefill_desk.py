"""Prefill and decode apart: the same tokens, whatever happens on the way, and nothing left on either side."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.messages.hand_over import CancelPrefill, DecoderDown, DecoderUp, ForgetReceiver, Prefill, Received
from pawl.actors.prefill_desk import PrefillDesk
from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.faults import Faults
from pawl.actors.simulation.manual import ManualContext, Sent
from pawl.actors.simulation.strategies.simple import Fair, RandomWalk
from pawl.gpu.ghost.oracle import expected
from pawl.lifecycle.states import Cause
from pawl.loops.lower_tiers import LowerTiers
from pawl.loops.orders.requests import Abort
from tests.actors.apart import DECODE, DESK, PREFILL, SIDES, Apart, companions

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3]


def test_each_side_has_the_companions_of_its_role() -> None:
    sides = Apart(Fair()).schedulers
    assert {side: companions(scheduler.loop) for side, scheduler in sides.items()} == SIDES


def test_whole_pages_of_a_prompt_are_computed_elsewhere_and_the_rest_here() -> None:
    run = Apart(Fair())
    run.rest()
    run.submit(1, PROMPT)
    run.rest()
    assert run.listener.tokens[1] == expected(PROMPT, 4)
    assert run.remote.counts.received == 1
    assert run.remote.counts.pages == 4
    assert run.loop.companion(LowerTiers).fetching.counts.pages == 4
    assert run.loop.counters.cached_tokens == 0
    assert run.schedulers["p"].loop.counters.by_cause == {Cause.HANDED_OVER: 1}
    assert run.left_over == []


@given(st.integers(0, 10_000), st.sampled_from(["lockstep", "overlap"]))
def test_under_any_schedule_the_tokens_are_those_of_the_prompt_alone(seed: int, pacing: str) -> None:
    run = Apart(RandomWalk(seed), pacing=pacing, max_pages=6)
    prompts = [PROMPT, PROMPT[:9], [7, *PROMPT], PROMPT[:3], [8] * 20]
    for request, prompt in enumerate(prompts, 1):
        run.submit(request, prompt)
        run.system.step()
    run.rest()
    assert [run.listener.tokens[request] for request in range(1, 6)] == [expected(prompt, 4) for prompt in prompts]
    assert run.left_over == []


@given(st.integers(0, 10_000), st.integers(0, 120))
def test_an_abort_at_any_moment_leaves_nothing_on_either_side(seed: int, steps: int) -> None:
    run = Apart(RandomWalk(seed))
    run.submit(1, PROMPT)
    run.submit(2, [7, *PROMPT])
    for _ in range(steps):
        run.system.step()
    run.abort(1)
    run.rest()
    assert run.listener.ended[1].cause in (Cause.CLIENT, Cause.LENGTH)
    assert run.listener.tokens[2] == expected([7, *PROMPT], 4)
    assert run.left_over == []
    assert all(scheduler.loop.memory.flush() for scheduler in run.schedulers.values()), "pages are held"


@pytest.mark.parametrize("salt", ["", "mine", "a&b=c %"])
def test_who_shares_with_whom_is_the_same_on_both_sides(salt: str) -> None:
    run = Apart(Fair())
    run.rest()
    run.submit(1, PROMPT, salt=salt)
    run.rest()
    assert run.remote.counts.pages == 4
    run.submit(2, PROMPT, salt="another")
    run.rest()
    assert run.remote.counts.pages == 8


LOSSES = Faults(lose=2, double=1, rush=1)


@given(st.integers(0, 10_000))
def test_what_is_lost_or_doubled_between_the_two_costs_time_and_nothing_else(seed: int) -> None:
    run = Apart(RandomWalk(seed), faults=LOSSES, wires=True)
    prompts = {request: [request, *PROMPT] for request in range(1, 5)}
    for request, prompt in prompts.items():
        run.submit(request, prompt)
    run.rest(but="pages under way")
    assert run.listener.tokens == {request: expected(prompt, 4) for request, prompt in prompts.items()}


@given(st.integers(0, 10_000))
def test_an_actor_of_the_prefill_replica_that_dies_costs_time_and_nothing_else(seed: int) -> None:
    dying = Faults(crash=1, may_crash=(DESK, PREFILL.scheduler, PREFILL.worker, PREFILL.storage))
    run = Apart(RandomWalk(seed), faults=dying, wires=True)
    prompts = {request: [request, *PROMPT] for request in range(1, 5)}
    for request, prompt in prompts.items():
        run.submit(request, prompt)
    run.rest("d")
    assert run.listener.tokens == {request: expected(prompt, 4) for request, prompt in prompts.items()}
    assert run.remote.statistics()["receiving"] == run.remote.statistics()["reserving"] == 0
    assert run.storages["d"].incoming.idle


def test_a_prefill_that_takes_too_long_is_given_up_and_what_came_of_it_is_used() -> None:
    run = Apart(Fair(), without=PREFILL.worker)
    run.rest("d")
    run.submit(1, PROMPT)
    run.rest("d")
    assert run.listener.tokens[1] == expected(PROMPT, 4)
    assert (run.remote.counts.overdue, run.remote.counts.received) == (1, 0)


def test_a_desk_that_does_not_know_who_asks_says_so_at_once() -> None:
    desk = PrefillDesk(PREFILL)
    context = ManualContext(desk, DESK)
    tokens = np.arange(5, dtype=np.int32)
    desk.receive(Prefill(ticket=3, scheduler="stranger", tokens=tokens, salt="", keys=(bytes(16),)))
    assert context.take_sent() == [Sent("stranger", Received(3, 0), Lane.CONTROL)]


def test_a_prefill_replica_that_is_full_says_so_at_once() -> None:
    desk = PrefillDesk(PREFILL)
    context = ManualContext(desk, DESK)
    desk.receive(DecoderUp(DECODE.scheduler, DECODE.storage))
    context.full.add(PREFILL.scheduler)
    tokens = np.arange(5, dtype=np.int32)
    desk.receive(Prefill(ticket=3, scheduler=DECODE.scheduler, tokens=tokens, salt="", keys=(bytes(16),)))
    assert context.take_sent()[-1] == Sent(DECODE.scheduler, Received(3, 0), Lane.CONTROL)
    assert desk.num_open == 0


def test_who_gives_up_one_prefill_still_waits_for_its_others() -> None:
    desk = PrefillDesk(PREFILL)
    context = ManualContext(desk, DESK)
    desk.receive(DecoderUp(DECODE.scheduler, DECODE.storage))
    for ticket in (1, 2, 3):
        tokens = np.arange(5, dtype=np.int32)
        desk.receive(Prefill(ticket=ticket, scheduler=DECODE.scheduler, tokens=tokens, salt="", keys=()))
    context.take_sent()
    desk.receive(CancelPrefill(2, DECODE.scheduler))
    assert context.take(PREFILL.scheduler) == [Abort((2,), Cause.CLIENT)]
    assert desk.num_open == 2


def test_what_a_decode_replica_asked_that_is_gone_is_given_up() -> None:
    desk = PrefillDesk(PREFILL)
    context = ManualContext(desk, DESK)
    others = "scheduler.8", "storage.8"
    for scheduler, storage in ((DECODE.scheduler, DECODE.storage), others):
        desk.receive(DecoderUp(scheduler, storage))
        desk.receive(Prefill(ticket=1, scheduler=scheduler, tokens=np.arange(5, dtype=np.int32), salt="", keys=()))
    context.take_sent()
    desk.receive(DecoderDown(DECODE.scheduler))
    assert context.take(PREFILL.scheduler) == [Abort((1,), Cause.CLIENT)]
    assert context.take(PREFILL.storage)[-1:] == [ForgetReceiver(DECODE.storage)]
    assert desk.num_open == 1, "others wait for theirs"
