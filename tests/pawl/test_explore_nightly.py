"""The long exploration of the nightly tier: random workloads in all loops, a hundred thousand schedules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import settings

from pawl.cli import main

NIGHTLY = settings().max_examples > 1000
SCHEDULES = 100_000


@pytest.mark.slow
@pytest.mark.skipif(not NIGHTLY, reason="for the nightly tier")
def test_a_hundred_thousand_schedules_reach_all_that_is_declared_and_give_no_counterexample(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--schedules", str(SCHEDULES), "--seconds", "14400", "--output", str(tmp_path / "schedule.json")]
    assert main(["explore", *words]) == 0, capsys.readouterr().out
    told = capsys.readouterr().out
    found = re.search(r"([\d,]+) schedules of", told)
    assert found is not None, told
    assert int(found[1].replace(",", "")) >= SCHEDULES
    assert "never: nothing that is declared" in told
