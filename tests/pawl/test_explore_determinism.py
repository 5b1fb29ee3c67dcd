"""A schedule that is run twice comes out the same, in this process and in any other; what would not, is told."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from typing import Any

import msgspec
import pytest

from pawl.actors.messages.generate import Submit
from pawl.actors.simulation.strategies.exhaustive import NotDeterministic
from pawl.actors.simulation.strategies.pos import POS
from pawl.cli import main
from pawl.loops.policy import POLICIES
from pawl.testing import Arrival, Faults, Shape, Workload, explore_workload
from pawl.testing.clients import FrontDesk
from pawl.testing.exploring import Outcome

WAITING = Workload(
    arrivals=tuple(Arrival(prompt=(97, 98 - number % 2), max_new_tokens=2) for number in range(5)),
    shape=Shape(max_running=1, policy="strange"),
)
"""Requests that wait for one slot, so that their order matters."""


@pytest.mark.parametrize("seed", range(4))
def test_every_schedule_of_the_engine_comes_out_twice_the_same(seed: int) -> None:
    outcome = explore_workload(Workload.random(seed), POS(seed), 4, confirm_every=1, shrink=False)
    assert outcome.found is None, outcome.found
    assert outcome.result.confirmed == 4


class Dice:
    """A policy that draws lots."""

    name = "dice"
    max_overtaken = None

    def order(self, rows: Any, waiting: Any) -> Any:
        return sorted(rows, key=lambda row: uuid.uuid4().int)


def test_a_policy_that_draws_lots_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "strange", lambda seed: Dice())
    with pytest.raises(NotDeterministic):
        explore_workload(WAITING, "pos", 20, confirm_every=1, shrink=False, replayed=False)


def test_a_number_from_outside_that_only_the_records_show_is_found_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    submit = FrontDesk.submit

    def submit_as_anybody(desk: FrontDesk, submits: list[Submit], sinks: Any) -> tuple[int, ...]:
        named = [msgspec.structs.replace(one, rid=one.rid or uuid.uuid4().hex) for one in submits]
        return submit(desk, named, sinks)

    monkeypatch.setattr(FrontDesk, "submit", submit_as_anybody)
    assert main(["explore", "--schedules", "60", "--seed", "5", "--workers", "1"]) == 1
    told = capsys.readouterr().out
    assert "the same schedule came out differently" in told
    assert "pawl replay" not in told


IN_ANOTHER_PROCESS = """
from pawl.loops.policy import POLICIES
from pawl.testing import Workload, explore_workload
from tests.pawl.test_explore_determinism import WAITING, ByName, losing

POLICIES["strange"] = lambda seed: ByName()
for workload in (Workload.random(2), Workload.random(6), WAITING):
    print(explore_workload(workload, "pos", 6, confirm_every=2, shrink=False, replayed=False).result.digest.hex())
print(losing().result.digest.hex())
"""


def losing() -> Outcome:
    """Runs in which an actor of a replica crashes, and the others of that replica end."""
    arrivals = tuple(Arrival(prompt=(97, 98, 99), max_new_tokens=2) for _ in range(2))
    workload = Workload(arrivals=arrivals, shape=Shape(replicas=2))
    return explore_workload(
        workload, "random", 6, seed=6, faults=Faults(crash=1), confirm_every=2, shrink=False, replayed=False
    )


class ByName:
    """A policy that goes through a set of names: their order is another one in each process."""

    name = "by name"
    max_overtaken = None

    def order(self, rows: Any, waiting: Any) -> Any:
        return [int(name) for name in {str(row) for row in rows}]


def digests(hash_seed: str) -> list[str]:
    """Of some explorations, in a process of their own."""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", IN_ANOTHER_PROCESS]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return told.stdout.split()


def test_another_process_comes_to_the_same_unless_something_goes_through_a_set() -> None:
    assert losing().reached["lost replica"]
    first, second = digests("1"), digests("2")
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert first[3] == second[3]
