"""Experts of a group of ranks: they are counted, and move, whatever becomes of the ranks."""

from __future__ import annotations

import pytest

from pawl.gpu.parallel.group import RankGroup
from pawl.gpu.parallel.placement import Placement
from pawl.gpu.parallel.ranks import RankLost, RanksDiverged
from pawl.gpu.step_runner import RunnerLost, WeightsRefused
from pawl.lifecycle.weight_source import FromDisk
from pawl.testing.ranks import EXPERTS, SimulatedRanks
from tests.gpu.groups import Faults, batches, drawn, group_of


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


def test_nothing_is_laid_out_for_the_next_map_while_ranks_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread lays it out: a rank that hears of it before it has switched has nothing to switch to."""
    group = group_of()
    ticket, switch = planned(group), group.switch_experts
    drawn(group)

    def switching(ticket: int) -> None:
        with pytest.raises(WeightsRefused, match="on their way"):
            group.placing.stage()  # type: ignore[union-attr]
        switch(ticket)

    monkeypatch.setattr(group, "switch_experts", switching)
    group.placing.switch(ticket)
    assert maps(group) == [group.placing.placement] * 2
    assert group.placing.placement != EXPERTS.placement


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
