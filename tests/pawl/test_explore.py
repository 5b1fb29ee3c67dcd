"""`pawl explore`: sound code gives no counterexample, a bad policy gives a small one, and it can be seen again."""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pawl.cli import main
from pawl.exploration.processes import _tell
from pawl.exploration.task import EXPLORED, Task, _strategy
from pawl.exploration.watched import report
from pawl.testing import Arrival, Shape, Workload, explore_workload, load_schedule
from pawl.testing.reached import EVENTS
from pawl.testing.workload import all_labels
from tests.mutants.hunting import task_with

FORGETFUL = """
class Forgetful:
    name = "forgetful"

    def order(self, rows, waiting):
        return rows[1:]
"""


@pytest.fixture
def forgetful(tmp_path: Path) -> str:
    """A policy that never offers whoever has waited longest."""
    (tmp_path / "mine.py").write_text(FORGETFUL)
    return f"{tmp_path / 'mine.py'}:Forgetful"


def test_the_engine_as_it_is_gives_no_counterexample(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--seconds", "600", "--schedules", "40", "--seed", "5", "--workers", "1"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"\d+ schedules of \d+ workloads, [\d,]+ messages delivered in .* deliveries/s; seed 5", told)
    assert told.endswith("violations: 0\n")


def test_the_same_seed_gives_the_same_runs(capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for _ in range(2):
        main(["explore", "--seconds", "600", "--schedules", "20", "--seed", "7", "--workers", "1"])
        counts.append(capsys.readouterr().out.partition(" in ")[0])
    assert counts[0] == counts[1]


def test_a_policy_that_forgets_somebody_is_shown_with_one_request_and_seen_again(
    forgetful: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "schedule.json"
    words = ["--policy", forgetful, "--seed", "1", "--workers", "1", "--output", str(saved)]
    assert main(["explore", "--seconds", "600", *words]) == 1
    told = capsys.readouterr().out
    assert "left out row 0" in told
    assert f"pawl replay {saved}" in told
    assert len(load_schedule(saved).workload.arrivals) == 1
    assert load_schedule(saved).choices.deviations() == []
    assert main(["replay", str(saved)]) == 0
    assert "left out row 0" in capsys.readouterr().out


def test_workers_report_to_one_summary(forgetful: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "schedule.json"
    words = ["--policy", forgetful, "--seed", "1", "--workers", "2", "--output", str(saved)]
    assert main(["explore", "--seconds", "600", *words]) == 1
    assert "violations: 1" in capsys.readouterr().out
    assert load_schedule(saved).error.startswith("your policy ")


def test_what_the_cache_did_ahead_of_a_control_message_is_replayed() -> None:
    """A stop string ends one request, by a message, in the step that has put the other one's pages into the cache."""
    stopped = Arrival(prompt=(98,), max_new_tokens=4, stop_after=3)
    other = Arrival(prompt=(98, 97, 98, 97, 97, 98, 98, 98, 98), max_new_tokens=1)
    shape = Shape(num_pages=9, max_running=2, lookahead=0, pacing="lockstep")
    outcome = explore_workload(Workload(arrivals=(stopped, other), shape=shape), "fair", 1)
    assert outcome.found is None, outcome.found


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--policy", "nonsense"], 2, "none of fcfs"),
        (["--policy", "no_such_file.py:Mine"], 2, "no_such_file.py"),
        (["--cache", "nonsense"], 2, "none of radix"),
        (["--scheduler", "json:loads"], 2, "no subclass of"),
        (["--seconds", "0"], 2, "above zero"),
        (["--workers", str(10**30)], 2, "--workers must be above zero, and 1024 at the most"),
        (["--max-requests", "1001"], 2, "--max-requests may be 1000 at the most"),
        (["--faults", "1001"], 2, "--max-requests may be 1000 at the most"),
    ],
)
def test_what_cannot_be_explored_is_refused(
    words: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explore", *words]) == status
    assert told in capsys.readouterr().err


def test_a_file_without_a_schedule_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.json").write_text("{}")
    assert main(["replay", str(tmp_path / "other.json")]) == 4
    assert "no schedule" in capsys.readouterr().err


def test_what_was_drawn_and_reached_is_told_as_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explore", "--seconds", "600", "--schedules", "20", "--seed", "5", "--workers", "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schedules"] == told["workloads"] == 20
    assert told["violation"] is None
    assert set(told["drawn"]) == set(all_labels())
    assert set(told["reached"]) == set(EVENTS)
    assert told["drawn"]["prompt"] == told["schedules"]
    assert 0 < told["reached"]["end by length"] <= told["schedules"] + told["confirmed"]


def test_a_strategy_that_learns_has_many_schedules_of_a_workload(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seconds", "600", "--schedules", "20", "--seed", "5", "--workers", "1", "--strategy", "coverage"]
    assert main(["explore", *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["workloads"], told["schedules"]) == (1, 20)


def test_strategies_take_turns_and_a_workload_that_is_given_has_its_fair_schedule_once() -> None:
    task = task_with([], 0, 0.0)
    assert Counter(_strategy(task, number) for number in range(8)) == dict.fromkeys(EXPLORED, 2)
    given = task._replace(workload=Path("run.scenario"))
    assert Counter(_strategy(given, number) for number in range(7)) == {"fair": 1, "pct": 2, "pos": 2, "random": 2}
    assert _strategy(task._replace(strategy="pos"), 0) == "pos"


def reports_of(task: Task, parent: int, tmp_path: Path) -> list[dict[str, Any]]:
    """What a worker tells whose command is the process `parent`."""
    reports, told = os.pipe()
    with open(reports, encoding="utf-8") as lines:
        report(partial(_tell, task, tmp_path / "found.json"), told, parent)
        return [json.loads(line) for line in lines]


def test_a_worker_tells_nothing_once_its_command_is_gone(tmp_path: Path) -> None:
    task = task_with([], 5, time.monotonic() + 600.0)._replace(schedules=1)
    *_, told = reports_of(task, os.getppid(), tmp_path)  # one each second until then
    assert (told["totals"]["schedules"], told["final"]) == (1, True)
    assert reports_of(task, -1, tmp_path) == []


def test_what_a_user_can_mend_a_worker_tells_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = task_with([], 5, time.monotonic() + 600.0)._replace(workload=tmp_path / "nowhere")
    with pytest.raises(SystemExit) as ended:
        reports_of(task, os.getppid(), tmp_path)
    assert ended.value.code == 1
    assert re.fullmatch(r"pawl: .*nowhere holds no scenario: .*\n", capsys.readouterr().err)


def test_what_never_happened_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--seconds", "30", "--schedules", "1", "--seed", "5", "--workers", "1", "--cache", "none"]
    assert main(["explore", *words]) == 0
    told = capsys.readouterr().out
    never = told[told.index("never: ") :]
    assert "cache radix" in never
    assert "prefix hit" in never


def test_shrinking_keeps_to_its_seconds_and_what_was_found_is_told_at_once(
    forgetful: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "schedule.json"
    words = ["--policy", forgetful, "--seed", "1", "--workers", "1", "--output", str(saved), "--seconds", "60"]
    assert main(["explore", *words, "--shrink-seconds", "0"]) == 1
    as_found = load_schedule(saved)
    assert f"found, and saved to {saved}: schedule" in capsys.readouterr().err
    assert main(["explore", *words]) == 1
    assert load_schedule(saved).workload.num_tokens < as_found.workload.num_tokens
