"""A recorded run with a defect becomes a scenario of the simulator in which the same property fails."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pawl.actors.simulation.endless import Stuck
from pawl.actors.simulation.exploration import ActorFailed, drive
from pawl.actors.simulation.quiet import silence
from pawl.actors.simulation.strategies.simple import RandomWalk
from pawl.cli import main
from pawl.lifecycle.records import Record, Started, StepPlanned, Submitted, Transition
from pawl.lifecycle.states import Event
from pawl.lifecycle.trace.writer import TraceWriter
from pawl.loops.orders.cache import FlushCache
from pawl.memory.violation import MemoryViolation
from pawl.testing import Arrival, Control, PropertyFailed, Shape, Workload, cluster, explore_workload
from pawl.testing.scenario import NoScenario, Scenario, recorded_scenario, renamed, show
from tests.mutants.everything import MUTANTS
from tests.mutants.mutant import Mutant, planted
from tests.mutants.places import place_of

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
CARRIED_OVER = {
    "evicted_before_the_fence": "no_reuse_before_fence",
    "freed_while_the_cache_has_it": "conservation",
    "worker_not_told_of_replaced_pages": "conservation",
    "salt_is_ignored": "namespace_isolation",
    "the_oldest_gives_way": "admission_is_monotone",
}
"""Defects of scheduling and memory -> the property by which a trace shows them first."""


def recorded(workload: Workload, seed: int = 0) -> list[Record]:
    """The trace of one run, whatever it broke."""
    walk = RandomWalk(seed)
    walk.begin()
    case = cluster(workload, walk, properties=lambda model: ())
    with silence(), contextlib.suppress(PropertyFailed, ActorFailed, MemoryViolation, Stuck):
        drive(case)
    return case.trace.records


def failing_records(mutant: Mutant) -> list[Record]:
    """Of the first recorded run that shows the defect, which must be planted."""
    kept = place_of(mutant.name).workload
    for seed in range(400):
        records = recorded(kept if seed < 50 else drawn(seed, cache="radix", cache_core="python"), seed)
        has_requests = any(isinstance(record, Submitted) for record in records)
        if has_requests and recorded_scenario(records).property is not None:
            return records
    raise AssertionError(f"{mutant.name} shows in no trace")


@pytest.mark.parametrize("name", CARRIED_OVER)
def test_the_simulator_shows_the_property_that_the_trace_shows(name: str) -> None:
    with planted(BY_NAME[name]):
        scenario = recorded_scenario(failing_records(BY_NAME[name]))
        shown = show(scenario, 60)
    assert scenario.property == CARRIED_OVER[name]
    assert shown.found is not None, (scenario, shown)
    error = shown.found.failure.error
    assert isinstance(error, PropertyFailed)
    assert error.property == scenario.property
    assert show(scenario, 20).found is None, "without the defect nothing is wrong"


def test_from_a_trace_on_disk_to_the_violation_by_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pawl.commands.replay.SCENARIO_SCHEDULES", 30)
    mutant, saved, found = BY_NAME["the_oldest_gives_way"], tmp_path / "run.scenario", tmp_path / "schedule.json"
    with planted(mutant):
        writer = TraceWriter(tmp_path / "traces", 1 << 30)
        for record in failing_records(mutant):
            writer.append(record)
        writer.close()
        assert main(["trace", "export", "scenario", str(tmp_path / "traces"), "-o", str(saved)]) == 0
        assert "admission_is_monotone" in capsys.readouterr().out
        assert main(["replay", str(saved)]) == 0
        assert "simulated admission_is_monotone" in capsys.readouterr().out
        words = ["--workload", str(saved), "--schedules", "60", "--seed", "0", "--workers", "1"]
        words += ["--shrink-seconds", "0"]
        assert main(["explore", *words, "--output", str(found)]) == 1
        assert "violations: 1" in capsys.readouterr().out  # of one property or another: the defect breaks several
        assert main(["replay", str(found)]) == 0
    assert main(["replay", str(saved)]) == 1
    assert "it did not show" in capsys.readouterr().out


def has_a_request_that_fits(workload: Workload) -> bool:
    """Whether its trace has a request: the edge refuses what is too long."""
    return any(len(each.prompt) + each.max_new_tokens <= workload.shape.room for each in workload.arrivals)


def drawn(seed: int, **shape: str) -> Workload:
    """A random workload; tiers and adapters are not carried over."""
    return Workload.random(seed, host_pages=0, storage_pages=0, max_loras=0, max_loaded_loras=0, **shape)


@pytest.mark.parametrize("seed", [seed for seed in range(20) if has_a_request_that_fits(drawn(seed))][:6])
def test_a_sound_run_becomes_the_workload_that_it_was(seed: int) -> None:
    before = drawn(seed)
    scenario = recorded_scenario(recorded(before))
    assert scenario.property is None
    made = scenario.workload
    assert made.shape.loop_config() == before.shape.loop_config()
    # A vector is not drawn: its seed is told to nobody.
    known = {(a.prompt, a.max_new_tokens, a.priority, None if a.embed else a.seed) for a in before.arrivals}
    told = {(a.prompt, a.max_new_tokens, a.priority, a.seed) for a in made.arrivals}
    assert told <= known
    assert explore_workload(made, "pct", 3, shrink=False).found is None


def test_a_request_comes_in_the_middle_of_others_work() -> None:
    early, late = Arrival(prompt=(97,), max_new_tokens=6), Arrival(prompt=(98,), max_new_tokens=1, after_tokens=3)
    shape = Shape(pacing="lockstep")
    records = recorded(Workload(arrivals=(early, late), shape=shape))
    place = next(at for at, record in enumerate(records) if isinstance(record, Submitted) and record.request == 2)
    steps = [isinstance(record, StepPlanned) for record in records]
    assert sum(steps[:place]) >= 3
    assert sum(steps[place:]) >= 1
    assert recorded_scenario(records).workload.arrivals[1].after_tokens >= 3


def test_who_waits_for_tokens_that_never_come_comes_when_nobody_is_left() -> None:
    left = Arrival(prompt=(97,), max_new_tokens=6, leaves_after=1)
    workload = Workload(
        arrivals=(left, Arrival(prompt=(98,), max_new_tokens=1, after_tokens=100)),
        controls=(Control(body=FlushCache(), after_tokens=200),),
    )
    assert explore_workload(workload, "random", 5).found is None
    alone = Workload(arrivals=workload.arrivals[1:], controls=workload.controls)
    assert explore_workload(alone, "random", 5).found is None


def test_only_the_last_requests_are_kept() -> None:
    records = recorded(Workload.random(3, max_requests=6))
    whole, part = recorded_scenario(records), recorded_scenario(records, most_requests=2)
    assert [arrival.prompt for arrival in part.workload.arrivals] == [
        arrival.prompt for arrival in whole.workload.arrivals[-2:]
    ]
    assert part.workload.arrivals[0].after_tokens == 0


def test_a_client_that_left_leaves_again_after_as_many_tokens() -> None:
    records = recorded(Workload(arrivals=(Arrival(prompt=(97,), max_new_tokens=14, leaves_after=3),)))
    ends = [record for record in records if isinstance(record, Transition) and record.event == Event.ABORT]
    assert len(ends) == 1
    assert recorded_scenario(records).workload.arrivals[0].leaves_after == ends[0].num_output


def num_shared(one: Sequence[int], two: Sequence[int]) -> int:
    """Length of the longest beginning of both."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))


@given(st.lists(st.lists(st.integers(0, 100_000) | st.integers(1, 3), min_size=1, max_size=6), min_size=2, max_size=5))
def test_renamed_prompts_share_the_beginnings_that_they_shared(lists: list[list[int]]) -> None:
    prompts = [tuple(tokens) for tokens in lists]
    after = renamed(prompts)
    assert all(0 <= token < 256 for prompt in after for token in prompt)
    for first, one in zip(prompts, after, strict=True):
        assert len(first) == len(one)
        for second, two in zip(prompts, after, strict=True):
            assert num_shared(one, two) == num_shared(first, second)


def test_what_is_no_whole_trace_gives_no_scenario(tmp_path: Path) -> None:
    records = recorded(Workload.random(1))
    with pytest.raises(NoScenario, match="set up"):
        recorded_scenario([record for record in records if not isinstance(record, Started)])
    with pytest.raises(NoScenario, match="no request"):
        recorded_scenario(records[:1])
    (tmp_path / "other.json").write_text('{"format": "another", "workload": {"arrivals": []}}')
    with pytest.raises(ValueError, match="another"):
        Scenario.load(tmp_path / "other.json")


def test_a_scenario_tells_before_each_schedule_how_far_it_is() -> None:
    begun = []
    scenario = Scenario(workload=Workload.random(3), property="none that there is")
    assert show(scenario, 12, begins=lambda: begun.append(None)).schedules == len(begun) == 12
