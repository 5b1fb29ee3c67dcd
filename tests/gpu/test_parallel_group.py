"""A group of ranks is one runner, and what is wrong with one of them is found: over ghosts that are told the same."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from structlog.testing import capture_logs

from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.ghost.weights import NAMES, GhostWeights
from pawl.gpu.native.ranks import RanksLost
from pawl.gpu.parallel.actions import RankActions, Used
from pawl.gpu.parallel.group import RankGroup
from pawl.gpu.parallel.order import RankRefused
from pawl.gpu.parallel.ranks import RankLost, RanksDiverged, StartRefused, check_ready
from pawl.gpu.parallel.restarts import LONGEST_WAIT_S, MOST, MOST_IN_A_ROW, WITHIN_S, Restarts
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.parallel.wire import Answer, ForgetSlots, RunStep, Usage
from pawl.gpu.step_runner import AdapterRefused, RunnerLost, WeightsRefused
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.step import StepResult
from pawl.lifecycle.weight_source import FromBytes, FromDisk
from pawl.testing.ranks import SimulatedRanks
from tests.gpu.groups import PAGE, PAGES, Faults, batches, drawn, ghost, group_of


def test_a_group_draws_what_one_runner_draws() -> None:
    assert drawn(group_of()) == drawn(ghost())


def test_steps_are_launched_ahead_and_collected_in_order() -> None:
    group, (first, second, third) = group_of(), batches(3)
    launched = [group.launch(first), group.launch(second)]
    results = [group.collect(launched[0]), group.collect(launched[1]), group.collect(group.launch(third))]
    assert [int(result.tokens[0]) for result in results] == drawn(ghost(), 3)


def test_a_question_between_steps_waits_for_those_before_it_and_loses_none_of_their_results() -> None:
    group, (first, second) = group_of(), batches(2)
    launched = group.launch(first)
    before = group.read_pages(np.array([0], np.int32))
    assert int(group.collect(launched).tokens[0]) == drawn(ghost(), 1)[0]
    group.collect(group.launch(second))
    alone = ghost()
    alone.collect(alone.launch(first))
    assert np.array_equal(before, alone.read_pages(np.array([0], np.int32)))


def test_what_ranks_have_done_comes_with_their_answers_and_begins_anew_with_a_restart() -> None:
    faults = Faults()
    group = group_of(faults)
    assert [(one.rank, one.steps, one.restarts) for one in group.ranks] == [(0, 0, 0), (1, 0, 0)]
    steps = len(batches(5))
    drawn(group)
    assert [(one.rank, one.steps, one.restarts) for one in group.ranks] == [(0, steps, 0), (1, steps, 0)]
    faults.wanted.append("rank 1 dies")
    with pytest.raises(RankLost):
        drawn(group)
    group.reset()
    assert [(one.rank, one.steps, one.restarts) for one in group.ranks] == [(0, 0, 1), (1, 0, 1)]


def test_a_rank_says_how_long_its_steps_were_and_what_its_process_uses() -> None:
    ticks = iter(range(100))
    actions = RankActions(ghost(), tells=True, used=lambda: Used(0.5, 1024, 7), clock=lambda: float(next(ticks)))
    for number, batch in enumerate(batches(3), 1):
        assert actions.step(RunStep(batch), []).usage == Usage(number, float(number), 0.5, 1024, 7)
    assert actions.step(ForgetSlots(), []).usage is None


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_dies_loses_the_step_and_reset_starts_all_again(number: int) -> None:
    faults = Faults()
    group = group_of(faults)
    expected = drawn(group)
    faults.wanted.append(f"rank {number} dies")
    with pytest.raises(RankLost, match=f"rank {number} was ended") as lost:
        drawn(group)
    assert lost.value.blameless
    with pytest.raises(RunnerLost, match="was ended"):
        group.launch(batches(1)[0])
    assert drawn(group) == expected  # begins with a reset
    assert group.version == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_leaves_a_step_out_is_found_by_its_next_answer(number: int) -> None:
    faults = Faults()
    group = group_of(faults)
    expected = drawn(group)
    faults.wanted.append(f"rank {number} skips a step")
    with pytest.raises(RanksDiverged, match="one_decision_log"):
        drawn(group)
    assert drawn(group) == expected


@pytest.mark.parametrize("waiting", [(0, 1), (0,)])
def test_ranks_that_have_waited_for_each_other_in_vain_are_started_again_and_no_request_is_blamed(
    waiting: tuple[int, ...],
) -> None:
    class InVain(Ghost):
        def collect(self, launched: object) -> StepResult:  # type: ignore[override]
            raise RanksLost("rank 1 did not come within 5 s")

    sizes = {"num_pages": PAGES, "page_size": PAGE, "num_slots": 1, "max_context": PAGE * PAGES}
    lives = iter([[(InVain if rank in waiting else Ghost)(**sizes) for rank in (0, 1)], [ghost(), ghost()]])
    abilities = ghost().abilities
    group = RankGroup(
        lambda _: SimulatedRanks(next(lives)), "ghost", step_limit_s=1.0, abilities=abilities, sleep=lambda _: None
    )
    with pytest.raises(RunnerLost, match="rank 1 did not come") as lost:
        group.collect(group.launch(batches(1)[0]))
    assert lost.value.blameless
    assert drawn(group) == drawn(ghost())


def test_a_step_in_which_one_rank_alone_fails_is_blamed_with_its_reason() -> None:
    class Fails(Ghost):
        def collect(self, launched: object) -> StepResult:  # type: ignore[override]
            raise ValueError("no room")

    sizes = {"num_pages": PAGES, "page_size": PAGE, "num_slots": 1, "max_context": PAGE * PAGES}
    lives = iter([[ghost(), Fails(**sizes)], [ghost(), ghost()]])
    abilities = ghost().abilities
    group = RankGroup(
        lambda _: SimulatedRanks(next(lives)), "ghost", step_limit_s=1.0, abilities=abilities, sleep=lambda _: None
    )
    with pytest.raises(RunnerLost, match="rank 1 alone has failed: ValueError: no room") as lost:
        group.collect(group.launch(batches(1)[0]))
    assert not lost.value.blameless
    assert drawn(group) == drawn(ghost())


@pytest.mark.parametrize("in_flight", [0, 1])
def test_a_death_that_is_seen_at_a_launch_is_not_blamed_on_that_step_but_on_those_in_flight(in_flight: int) -> None:
    class Deaf(SimulatedRanks):
        """One of them has ended by itself when the next step is told."""

        def tell(self, message: object) -> None:
            raise RankLost(1, "has ended with status 1", blameless=False)

    ranks = Deaf([ghost(), ghost()])
    group = RankGroup(
        lambda _: ranks, "ghost", step_limit_s=1.0, abilities=ghost().abilities, clock=lambda: 0.0, sleep=lambda _: None
    )
    steps = batches(2)
    launched = [group.launch(step) for step in steps[:in_flight]]
    ranks.steps.tell = ranks.tell  # type: ignore[method-assign]
    with pytest.raises(RunnerLost, match="rank 1 has ended") as seen:
        group.launch(steps[in_flight])
    assert seen.value.blameless
    for step in launched:
        with pytest.raises(RunnerLost, match="rank 1 has ended") as lost:
            group.collect(step)
        assert not lost.value.blameless


def test_a_step_that_every_rank_refuses_alike_costs_no_rank() -> None:
    group, (_, second) = group_of(), batches(2)
    with pytest.raises(RankRefused, match="GhostFault"):
        group.collect(group.launch(second))  # goes on from nothing
    group.reset()
    assert group.version == 0
    assert drawn(group) == drawn(ghost())


def test_what_ranks_refuse_is_told_to_whoever_asked_and_logged_by_none_of_them() -> None:
    group = group_of()
    with capture_logs() as logs:
        with pytest.raises(AdapterRefused, match="nowhere"):
            group.load_adapter(2, "nowhere")
        with pytest.raises(WeightsRefused, match="nowhere"):
            group.stage(1, FromDisk("nowhere"))
        assert logs == []
        with pytest.raises(RankRefused, match="GhostFault"):
            group.collect(group.launch(batches(2)[1]))
    assert {(entry["event"], entry["message"]) for entry in logs} == {("a rank could not do it", "RunStep")}


def test_ranks_that_are_started_again_have_the_adapters_and_the_memory_that_they_had() -> None:
    faults = Faults()
    group = group_of(faults)
    assert group.load_adapter(2, "ghost:other") == "ghost:other"
    expected = drawn(group, adapter=2)
    assert expected != drawn(group)
    faults.wanted.append("rank 1 dies")
    with pytest.raises(RankLost):
        drawn(group, adapter=2)
    group.reset()
    assert drawn(group, adapter=2) == expected
    group.release([MemoryTag.WEIGHTS])
    assert MemoryTag.WEIGHTS in group.released


def test_weights_are_exchanged_on_all_ranks_and_a_start_reads_those_that_serve() -> None:
    faults = Faults()
    group = group_of(faults)
    assert group.stage(1, FromDisk("ghost:new")) == "ghost:new"
    group.swap(1)
    expected = drawn(group)
    faults.wanted.append("rank 0 dies")
    with pytest.raises(RankLost):
        drawn(group)
    assert drawn(group) == expected
    with pytest.raises(WeightsRefused, match="nothing is staged"):
        group.swap(2)


def test_weights_whose_first_part_was_lost_with_the_ranks_are_refused_and_can_be_sent_again() -> None:
    faults, new = Faults(), GhostWeights(3, 4)
    group, other = group_of(faults), group_of()
    first, second = (FromBytes(new.file(name)) for name in NAMES)
    group.stage(1, first, last=False)
    faults.wanted.append("rank 0 dies")
    with pytest.raises(RankLost):
        drawn(group)
    old = drawn(group)
    with pytest.raises(WeightsRefused, match="send all of them again"):
        group.stage(1, second)
    assert drawn(group) == old
    for each in (group, other):
        each.stage(2, first, last=False)
        each.stage(2, second)
        each.swap(2)
    assert drawn(group) == drawn(other) != old


def test_weights_that_only_the_ranks_had_end_the_group_with_them() -> None:
    faults, ghosts = Faults(), [ghost(), ghost()]
    started = [lambda model: SimulatedRanks(ghosts, faults, pytest.fail, model)]
    group = RankGroup(started[0], "ghost", step_limit_s=1.0, abilities=ghosts[0].abilities, sleep=lambda seconds: None)
    group.stage(1, FromBytes(GhostWeights(3, 4).file()))
    group.swap(1)
    faults.wanted.append("rank 0 dies")
    with pytest.raises(RankLost):
        drawn(group)
    with pytest.raises(RunnerLost, match="the weights that ranks were sent are lost with them"):
        group.reset()


class Late:
    """A line to ranks that do not answer in time."""

    def tell(self, message: object) -> None:
        """They may answer later."""

    def answers(self, limit_s: float) -> Sequence[Answer]:
        raise RankLost(1, "has not answered")


def test_ranks_that_owe_an_answer_are_ended_before_it_can_be_taken_for_that_of_the_next_question() -> None:
    late, fresh = (SimulatedRanks([ghost(), ghost()]) for _ in range(2))
    late.beside = Late()  # type: ignore[assignment]
    lives = iter([late, fresh])
    abilities = ghost().abilities
    group = RankGroup(lambda _: next(lives), "ghost", step_limit_s=1.0, abilities=abilities, sleep=lambda _: None)
    with pytest.raises(RunnerLost, match="rank 1 has not answered"):
        group.load_adapter(1, "ghost:other")
    assert (late.ended, fresh.ended, group.lost) == (True, False, True)
    group.reset()
    assert not group.lost
    assert group.load_adapter(1, "ghost:other") == "ghost:other"


def test_weights_and_an_adapter_under_which_ranks_are_lost_can_be_read_again_after_a_reset() -> None:
    faults = Faults()
    group = group_of(faults)
    for read in (partial(group.load_adapter, 1, "ghost:other"), partial(group.stage, 1, FromDisk("ghost:new"))):
        faults.wanted.append("rank 1 dies")
        with pytest.raises(RunnerLost, match="rank 1 was ended"):
            read()
        assert group.lost
        group.reset()
        assert not group.lost
        read()
    group.swap(1)
    assert group.fingerprint == "ghost:new"


@pytest.mark.parametrize(
    "reason", [StartRefused("no memory"), OSError("no memory"), RankRefused("ValueError", "no memory")]
)
def test_a_group_whose_ranks_do_not_start_gives_up_with_the_reason(reason: Exception) -> None:
    faults, ghosts, starts = Faults(), [ghost(), ghost()], [0]

    def start(model: str) -> SimulatedRanks:
        starts[0] += 1
        if starts[0] > 2 * MOST_IN_A_ROW:
            pytest.fail("starts are not bounded")
        if starts[0] > 1:
            raise reason
        return SimulatedRanks(ghosts, faults, pytest.fail, model)

    waits: list[float] = []
    group = RankGroup(start, "ghost", step_limit_s=1.0, abilities=ghosts[0].abilities, sleep=waits.append)
    faults.wanted.append("rank 0 dies")
    with pytest.raises(RankLost):
        drawn(group)
    with pytest.raises(RunnerLost, match=f"no memory; {MOST_IN_A_ROW} starts were enough"):
        group.reset()
    assert starts[0] == 1 + MOST_IN_A_ROW
    assert waits == sorted(waits)
    assert waits[0] == 0.0


def test_starts_are_bounded_in_a_row_and_in_a_time() -> None:
    restarts, now = Restarts(), 0.0
    for _ in range(MOST):
        assert restarts.next_wait_s(now) == 0.0
        restarts.served()
        now += 1.0
    assert restarts.next_wait_s(now) is None
    now = WITHIN_S + 0.5
    waits = [restarts.next_wait_s(now) for _ in range(MOST_IN_A_ROW)]
    assert waits[0] == 0.0
    assert all(wait is not None and wait <= LONGEST_WAIT_S for wait in waits if wait is not None)


def test_ranks_that_are_not_alike_are_refused_with_what_each_has() -> None:
    ready = SimulatedRanks([ghost(), ghost()]).ready
    check_ready(ready, Topology(tensor=2))
    smaller = SimulatedRanks(
        [ghost(), Ghost(num_pages=PAGES - 1, page_size=PAGE, num_slots=1, max_context=PAGE * PAGES)]
    ).ready
    words = f"max_tokens \\(rank 0: {PAGE * PAGES}, rank 1: {PAGE * (PAGES - 1)}\\)"
    with pytest.raises(StartRefused, match=words):
        check_ready(smaller, Topology(tensor=2))
    with pytest.raises(StartRefused, match="stage"):
        check_ready(ready, Topology(pipeline=2))


def test_memory_that_ranks_were_lost_with_can_be_resumed_and_the_next_step_starts_them_again() -> None:
    faults = Faults()
    group, expected = group_of(faults), drawn(group_of())
    drawn(group)
    group.release([MemoryTag.WEIGHTS, MemoryTag.KV_CACHE])
    faults.wanted.append("rank 0 dies")
    with pytest.raises(WeightsRefused):
        group.placing.stage()
    group.resume([MemoryTag.WEIGHTS])
    assert group.released == {MemoryTag.KV_CACHE}
    group.resume([MemoryTag.KV_CACHE])
    with pytest.raises(RunnerLost):
        group.launch(batches(1)[0])
    assert drawn(group) == expected
    assert not group.released
