"""The pytest plugin `pawl`: the fixture `explore`, which fails a test with a counterexample to read and replay.

    def test_my_policy(explore):
        explore(Workload.random(seed=1, policy="lpm"))

It stands outside of `pawl.testing` and imports that late: every pytest run of the environment loads it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pawl.exploration import Totals

if TYPE_CHECKING:
    from pawl.actors.simulation.faults import Faults
    from pawl.testing import Found, Workload
    from pawl.testing.subject import exploring as subject

SCHEDULES = 20
"""Of each workload."""
CONFIRM_EVERY = 10
"""Schedules of which one is run twice, and must come out the same."""
MARKER = "pawl(schedules=N, seed=N): how many schedules of each workload `explore` runs, and the seed of the first"


class Explorer:
    """The fixture `explore`. `schedules` and `seed` come from the command line, else from the marker."""

    def __init__(self, schedules: int, seed: int, folder: Path) -> None:
        self.schedules = schedules
        self.seed = seed
        self._folder = folder

    def __call__(
        self,
        workloads: Workload | Iterable[Workload],
        strategy: str = "pct",
        schedules: int | None = None,
        faults: Faults | None = None,
        confirm_every: int = CONFIRM_EVERY,
    ) -> Totals:
        """Serve each workload under `schedules` schedules; the first counterexample fails the test."""
        from pawl.testing import NO_FAULTS, NotDeterministic, Workload, explore_workload

        each = self.schedules if schedules is None else schedules
        done = Totals()
        for number, workload in enumerate([workloads] if isinstance(workloads, Workload) else workloads):
            try:
                outcome = explore_workload(
                    workload,
                    strategy,
                    each,
                    seed=self.seed + number,
                    faults=faults or NO_FAULTS,
                    confirm_every=confirm_every,
                )
            except NotDeterministic as error:
                pytest.fail(f"the same schedule came out differently: {error}\n{workload.encode()}", pytrace=False)
            if outcome.found is not None:
                self.fail(outcome.found)
            done = done.plus(Totals.of(outcome))
        return done

    def fail(self, found: Found | subject.Found) -> None:
        """Fail the test, with the counterexample; it is saved."""
        path = self._folder / "schedule.json"
        found.save(path)
        pytest.fail(f"{found}\n\nsaved; to see it again: pawl replay {path}", pytrace=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the command line."""
    group = parser.getgroup("pawl", "simulated runs of the Pawl engine")
    group.addoption(
        "--pawl-schedules", type=int, metavar="N", help=f"schedules of each explored workload (default: {SCHEDULES})"
    )
    group.addoption("--pawl-seed", type=int, metavar="N", help="seed of explored workloads and schedules (default: 0)")


def pytest_configure(config: pytest.Config) -> None:
    """The marker."""
    config.addinivalue_line("markers", MARKER)


@pytest.fixture
def explore(request: pytest.FixtureRequest, tmp_path: Path) -> Explorer:
    """Runs workloads under many schedules: `explore(workload or workloads, strategy, schedules, faults)`."""
    marker = request.node.get_closest_marker("pawl")
    stated = marker.kwargs if marker is not None else {}
    unknown = set(stated) - {"schedules", "seed"}
    if unknown or (marker is not None and marker.args):
        raise pytest.UsageError(f"the marker is {MARKER}")

    def value(name: str, default: int) -> int:
        given = request.config.getoption(f"--pawl-{name}")
        return int(stated.get(name, default) if given is None else given)

    return Explorer(value("schedules", SCHEDULES), value("seed", 0), tmp_path)
