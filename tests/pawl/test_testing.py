"""What users test their own parts with: the plugin, the contract, and workload and schedule shrunk together."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from pawl.cli import main
from pawl.exploration import CELLS
from pawl.testing import Faults, Workload, check_schedule, fault_budgets, schedules, workloads
from pawl.testing.parts import PartFailed
from pawl.testing.plugins import know_policy
from pawl.testing.shape import Shape

pytest_plugins = ["pytester"]

PARTS = """
from pawl.actors.scheduler import Scheduler
from pawl.memory.prefix.radix import RadixCache


class LastComeFirstServed:
    name = "lifo"

    def order(self, rows, waiting):
        return list(reversed(rows))


class Forgiving(RadixCache):
    '''Takes prompts with equal second tokens for the same.'''

    def match_and_hold(self, tokens, namespace, priority=0):
        return super().match_and_hold(tokens[1:], namespace, priority)


class Twice(Scheduler):
    '''Tells the worker of every step twice.'''

    def launch(self, plan):
        super().launch(plan)
        super().launch(plan)


class Plain(Scheduler):
    pass
"""

EXPLORING = "from pawl.testing import Faults, Workload\n"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A folder of a user with parts of their own, where pytest finds nothing of ours but the plugin."""
    pytester.makepyfile(parts=PARTS)
    monkeypatch.syspath_prepend(pytester.path)
    return pytester


def contract(project: pytest.Pytester, body: str, *words: str) -> pytest.RunResult:
    """Run the contract tests of one class."""
    project.makepyfile(
        test_mine=f"from pawl.testing.contract import SchedulerContract\n"
        f"import parts\n\n\nclass TestMine(SchedulerContract):\n    num_workloads = 2\n    {body}\n"
    )
    return project.runpytest_inprocess("--pawl-schedules=2", *words)


def saved_in(result: pytest.RunResult) -> Path:
    """The schedule that the plugin says it has saved."""
    (line, *_) = [line for line in result.outlines if "pawl replay" in line]
    return Path(line.split()[-1])


# ---- the contract ----

TESTS = 3 * len(CELLS)


def test_the_engine_keeps_the_contract_and_so_does_a_scheduler_that_changes_nothing(project: pytest.Pytester) -> None:
    contract(project, "scheduler = parts.Plain").assert_outcomes(passed=TESTS)


def test_last_come_first_served_is_shown_with_a_queue_and_seen_again(
    project: pytest.Pytester, capsys: pytest.CaptureFixture[str]
) -> None:
    result = contract(
        project, "policy = parts.LastComeFirstServed; num_workloads = 60", "-k", "many_wait and lockstep-mixed"
    )
    result.assert_outcomes(failed=1, deselected=TESTS - 1)
    result.stdout.fnmatch_lines(["*LastComeFirstServed (order, parts.py:*) put rows 2 and 1 before row 0*"])
    # On a CI pytest shows it twice.
    assert len({line for line in result.outlines if line.startswith("  request ")}) <= 6
    assert main(["replay", str(saved_in(result))]) == 0
    assert "put rows 2 and 1 before row 0" in capsys.readouterr().out


@pytest.mark.slow
def test_a_cache_that_mixes_prompts_up_is_found(project: pytest.Pytester) -> None:
    result = contract(project, "cache = parts.Forgiving; num_workloads = 240", "-k", "overlap-mixed and not when")
    result.assert_outcomes(failed=1, deselected=TESTS - 1)
    result.stdout.fnmatch_lines(["*cache='*parts.py:Forgiving'*"])


def test_a_scheduler_that_launches_twice_is_found(project: pytest.Pytester) -> None:
    result = contract(project, "scheduler = parts.Twice", "-k", "lockstep-mixed and not when")
    result.assert_outcomes(failed=1, deselected=TESTS - 1)
    result.stdout.fnmatch_lines(["*scheduler='*parts.py:Twice'*"])


@pytest.mark.slow
def test_the_command_takes_parts_by_the_same_names(
    project: pytest.Pytester, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["explore", "--seconds", "600", "--workers", "1", "--seed", "1", "-o", str(tmp_path / "schedule.json")]
    assert main([*words, "--cache", f"{project.path}/parts.py:Forgiving"]) == 1
    assert "parts.py:Forgiving" in capsys.readouterr().out
    assert main([*words, "--schedules", "20", "--scheduler", "parts:Plain"]) == 0


# ---- the fixture ----


def test_the_fixture_takes_one_workload_or_many_and_counts_what_it_did(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_mine=EXPLORING
        + """
def test_one(explore):
    done = explore(Workload.random(seed=1), "pos", schedules=5, confirm_every=5)
    assert done[:2] == (1, 5) and done.confirmed == 1 and done.deliveries > 50


def test_many(explore):
    assert explore((Workload.random(seed) for seed in range(3)), faults=Faults(strike=1))[:2] == (3, 6)
"""
    )
    project.runpytest_inprocess("--pawl-schedules=2").assert_outcomes(passed=2)


def test_the_command_line_goes_before_the_marker(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_mine=EXPLORING
        + """
import pytest

@pytest.mark.pawl(schedules=3, seed=8)
def test_one(explore):
    assert (explore.schedules, explore.seed) == (3, 5)
"""
    )
    project.runpytest_inprocess("--pawl-seed=5", "--strict-markers").assert_outcomes(passed=1)


@pytest.mark.parametrize("marker", ["pawl(3)", "pawl(runs=3)"])
def test_a_marker_that_means_nothing_is_refused(project: pytest.Pytester, marker: str) -> None:
    project.makepyfile(
        test_mine=EXPLORING + f"import pytest\n\n@pytest.mark.{marker}\ndef test_one(explore):\n    pass\n"
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*the marker is pawl(schedules=N, seed=N)*"])


def test_chance_that_nobody_seeded_fails_the_test(project: pytest.Pytester) -> None:
    project.makepyfile(
        test_mine=EXPLORING
        + """
import random
from pawl.testing import contention
from pawl.testing.parts import PartFailed
from pawl.testing.plugins import know_policy


class Dice:
    name = "dice"
    max_overtaken = None

    def order(self, rows, waiting):
        return random.sample(list(rows), len(rows))


def test_dice(explore):
    explore((contention(seed, policy=know_policy(Dice)) for seed in range(9)), confirm_every=1)
"""
    )
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)


# ---- workload and schedule from Hypothesis ----


@settings(max_examples=25)
@given(workload=workloads(), schedule=schedules(), faults=fault_budgets())
def test_the_engine_holds_under_what_hypothesis_draws(workload: Workload, schedule: object, faults: Faults) -> None:
    made = check_schedule(workload, schedule, faults=faults)  # type: ignore[arg-type]
    assert made.desk.at_rest or workload.closing is not None


def test_workload_and_schedule_shrink_together() -> None:
    class Forgetful:
        name = "forgetful"

        def order(self, rows: list[int], waiting: object) -> list[int]:
            return rows[1:]

    policy = know_policy(Forgetful)  # type: ignore[arg-type]
    failed: list[Workload] = []

    @settings(
        max_examples=200,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        derandomize=True,
        database=None,
    )
    @given(workload=workloads(policy=policy), schedule=schedules())
    def served(workload: Workload, schedule: object) -> None:
        failed.append(workload)
        check_schedule(workload, schedule)  # type: ignore[arg-type]

    with pytest.raises(PartFailed, match="left out row 0") as raised:
        served()
    (arrival,) = failed[-1].arrivals
    assert (len(arrival.prompt), arrival.max_new_tokens) == (1, 1)
    assert not [note for note in raised.value.__notes__ if note.startswith("decision")], "the fair schedule shows it"


# ---- names ----


def test_names_of_what_cannot_be_loaded_say_why() -> None:
    from pawl.testing.plugins import know_all

    for shape, told in (
        (Shape(policy="none.such:Mine"), "No module named"),
        (Shape(cache="lru"), "none of radix, none, FILE.py:CLASS"),
        (Shape(scheduler="json:loads"), "no subclass"),
    ):
        with pytest.raises((ValueError, TypeError), match=told):
            know_all(shape)
