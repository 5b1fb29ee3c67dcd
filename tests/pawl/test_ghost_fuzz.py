"""Whatever is sent to a served ghost, whole or damaged: no failure, nothing in the log, a trace that passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.fuzz import fuzz
from pawl.lifecycle.audit import Verdict


@pytest.mark.parametrize("inputs", [pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_input_makes_the_server_fail(tmp_path: Path, inputs: int) -> None:
    seen, report = fuzz(tmp_path, seed=0, first=0, inputs=inputs, workers=8)
    assert seen.failed == []
    assert seen.ends.total() == inputs
    assert report.exit_status == 0
    assert (report.tracebacks, report.secrets, report.unrest, report.contained) == ([], [], [], 0)
    assert report.verdict is Verdict.PASS, report.audit
