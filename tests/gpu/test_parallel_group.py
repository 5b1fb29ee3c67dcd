"""A group of ranks is one runner, and what is wrong with one of them is found: over ghosts that are told the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from pawl.gpu.alone import steps_alone
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.ghost.weights import NAMES, GhostWeights
from pawl.gpu.native.ranks import RanksLost
from pawl.gpu.parallel.actions import RankActions, Used
from pawl.gpu.parallel.group import RankGroup
from pawl.gpu.parallel.order import RankRefused
from pawl.gpu.parallel.placement import Placement
from pawl.gpu.parallel.ranks import RankLost, RanksDiverged, StartRefused, check_ready
from pawl.gpu.parallel.restarts import LONGEST_WAIT_S, MOST, MOST_IN_A_ROW, WITHIN_S, Restarts
from pawl.gpu.parallel.topology import Topology
from pawl.gpu.parallel.wire import Answer, ForgetSlots, RunStep, Usage
from pawl.gpu.step_runner import AdapterRefused, RunnerLost, WeightsRefused
from pawl.lifecycle.machines.memory import MemoryTag
from pawl.lifecycle.request import SamplingParameters
from pawl.lifecycle.step import StepBatch, StepResult
from pawl.lifecycle.weight_source import FromBytes, FromDisk
from pawl.testing.ranks import EXPERTS, SimulatedRanks, simulated_group

PAGE, PAGES = 4, 6
GREEDY = SamplingParameters(temperature=0.0)
PROMPT = np.arange(40, 49, dtype=np.int32)


def ghost() -> Ghost:
    return Ghost(num_pages=PAGES, page_size=PAGE, num_slots=1, max_context=PAGE * PAGES)


class Faults:
    """Strike once each, at the place that is named."""

    def __init__(self) -> None:
        self.wanted: list[str] = []

    def __call__(self, place: str) -> bool:
        if place not in self.wanted:
            return False
        self.wanted.remove(place)
        return True


def group_of(faults: Callable[[str], bool] | None = None) -> RankGroup:
    return simulated_group([ghost(), ghost()], faults or Faults(), pytest.fail, clock=lambda: 0.0)


def drawn(runner: RankGroup | Ghost, num_output: int = 5, adapter: int = 0) -> list[int]:
    steps = steps_alone(runner, PROMPT, GREEDY, num_output, PAGE, adapter=adapter)
    return [int(result.tokens[0]) for result in steps]


def batches(num_output: int) -> list[StepBatch]:
    """What one request alone is computed with."""
    seen: list[StepBatch] = []

    class Watched(Ghost):
        def launch(self, batch: StepBatch) -> object:  # type: ignore[override]
            seen.append(batch)
            return super().launch(batch)

    drawn(Watched(num_pages=PAGES, page_size=PAGE, num_slots=1, max_context=PAGE * PAGES), num_output)
    return seen


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
    with pytest.raises(AdapterRefused, match="rank 1 has not answered"):
        group.load_adapter(1, "ghost:other")
    assert (late.ended, fresh.ended) == (True, False)


@pytest.mark.parametrize(
    "reason", [StartRefused("no memory"), OSError("no memory"), RankRefused("ValueError", "no memory")]
)
def test_a_group_whose_ranks_do_not_start_gives_up_with_the_reason(reason: Exception) -> None:
    faults, ghosts, starts = Faults(), [ghost(), ghost()], [0]

    def start(model: str) -> SimulatedRanks:
        starts[0] += 1
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


# ---- experts that move ----


def maps(group: RankGroup) -> list[Placement]:
    """By which each rank computes."""
    ranks = group._ranks
    assert isinstance(ranks, SimulatedRanks)
    return [rank.experts.placement for rank in ranks.experts]


def planned(group: RankGroup) -> int:
    """The ticket of a map that is laid out for what a few steps have used."""
    assert group.placing is not None
    drawn(group)
    found = group.placing.stage()
    assert found is not None
    assert found.after < found.before
    return found.ticket


def test_experts_move_on_all_ranks_at_once_and_tokens_are_the_same() -> None:
    group, before = group_of(), drawn(group_of())
    ticket, old = planned(group), EXPERTS.placement
    assert maps(group) == [old, old]
    group.placing.switch(ticket)
    new = group.placing.placement
    assert new != old
    assert maps(group) == [new, new]
    assert drawn(group) == before
    with pytest.raises(WeightsRefused, match="no experts are to move"):
        group.placing.switch(ticket)


def test_a_rank_that_does_not_switch_is_found_and_all_are_started_again_by_one_map() -> None:
    faults = Faults()
    group = group_of(faults)
    ticket = planned(group)
    faults.wanted.append("rank 1 skips a step")
    with pytest.raises(WeightsRefused, match="one_decision_log"):
        group.placing.switch(ticket)
    with pytest.raises(RunnerLost, match="one_decision_log"):
        group.launch(batches(1)[0])
    group.reset()
    assert maps(group) == [EXPERTS.placement] * 2


@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_dies_while_experts_are_laid_out_or_switched_leaves_the_old_map(number: int) -> None:
    faults = Faults()
    group = group_of(faults)
    drawn(group)
    faults.wanted.append(f"rank {number} dies")
    with pytest.raises(WeightsRefused, match="was ended"):
        group.placing.stage()
    group.reset()
    ticket = planned(group)
    faults.wanted.append(f"rank {number} dies")
    with pytest.raises(WeightsRefused, match="was ended"):
        group.placing.switch(ticket)
    group.reset()
    assert maps(group) == [EXPERTS.placement] * 2
    group.placing.switch(planned(group))
    assert maps(group) == [group.placing.placement] * 2


def test_ranks_that_are_lost_with_what_they_had_laid_out_refuse_to_switch_and_start_by_the_map_of_before() -> None:
    faults = Faults()
    group = group_of(faults)
    ticket = planned(group)
    faults.wanted.append("rank 0 dies")
    with pytest.raises(RankLost):
        drawn(group)
    group.reset()
    with pytest.raises(WeightsRefused, match="experts are on their way already"):
        group.placing.stage()
    with pytest.raises(WeightsRefused, match="no experts are staged"):
        group.placing.switch(ticket)
    group.placing.switch(planned(group))
    new = group.placing.placement
    faults.wanted.append("rank 0 dies")
    with pytest.raises(RankLost):
        drawn(group)
    group.reset()
    assert maps(group) == [new, new]


def test_experts_stay_while_an_update_of_the_weights_is_under_way() -> None:
    group = group_of()
    ticket = planned(group)
    group.stage(1, FromDisk("ghost:new"))
    with pytest.raises(WeightsRefused, match="an update of the weights is under way"):
        group.placing.switch(ticket)
    group.swap(1)
    group.placing.switch(planned(group))


def test_it_is_time_to_move_experts_once_in_so_many_steps() -> None:
    group, due, steps = group_of(), list[int](), 0
    for _ in range(3):
        group.reset()
        for batch in batches(10):
            group.collect(group.launch(batch))
            steps += 1
            if group.placing.due():
                due.append(steps)
                assert not group.placing.due()
                if (found := group.placing.stage()) is not None:
                    group.placing.switch(found.ticket)
    assert due == [EXPERTS.every * n for n in range(1, 1 + len(due))]
    assert len(due) > 1


def test_what_is_recorded_of_experts_goes_on_when_ranks_are_started_again() -> None:
    faults = Faults()
    group = group_of(faults)
    group.experts.start()
    faults.wanted.append("rank 1 dies")
    with pytest.raises(RankLost):
        drawn(group)
    group.reset()
    steps = batches(4)
    drawn(group, 4)
    group.experts.stop()
    drawn(group, 4)
    assert int(group.experts.take().sum()) == sum(int(batch.lengths.sum()) for batch in steps)


@pytest.mark.parametrize("known", [False, True], ids=["seen by the question", "known before"])
def test_a_record_of_experts_starts_and_stops_while_ranks_are_lost_and_those_started_next_count_so(known: bool) -> None:
    faults = Faults()
    group = group_of(faults)

    def lose() -> None:
        if known:
            faults.wanted.append("rank 0 dies")
            with pytest.raises(RankLost):
                drawn(group)
        else:
            assert group._ranks is not None
            group._ranks.end()

    lose()
    group.experts.start()
    with pytest.raises(RunnerLost, match="was ended"):
        group.launch(batches(1)[0])
    group.reset()
    steps = batches(4)
    drawn(group, 4)
    lose()
    group.experts.stop()
    group.reset()
    drawn(group, 4)
    assert int(group.experts.take().sum()) == sum(int(batch.lengths.sum()) for batch in steps)
    assert maps(group) == [EXPERTS.placement] * 2


def test_ranks_that_have_parted_may_be_asked_beside_before_that_step_is_read_and_none_goes_on() -> None:
    faults = Faults()
    group = group_of(faults)
    drawn(group)
    group.reset()
    faults.wanted.append("rank 1 skips a step")
    launched = group.launch(batches(1)[0])
    assert group.placing.stage() is not None
    with pytest.raises(RanksDiverged):
        group.collect(launched)
    group.reset()
    assert maps(group) == [EXPERTS.placement] * 2


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
