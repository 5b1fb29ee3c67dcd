"""Whatever is changed in a trace, the audit names it, or it is of a kind that no trace can show.

The forger knows nothing of what records mean, so a new field is forged as well: it shows, or somebody says why not.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from pathlib import Path

import msgspec
import pytest

from pawl.actors.simulation.exploration import silence
from pawl.actors.simulation.faults import Faults
from pawl.build.grammars import Folds
from pawl.commands.audit import recomputing
from pawl.lifecycle.audit import Report, Verdict, audit
from pawl.lifecycle.records import Record
from pawl.loops.decision_log import OneDecisionLog
from pawl.testing.workload import Workload
from tests.lifecycle.story import write
from tests.pawl.forger import forgeries, simulated
from tests.pawl.forger_reasons import IN_PRINCIPLE, cannot_show

NIGHTLY = 60


def audited(folder: Path, records: list[Record]) -> Report:
    """As `pawl audit` does it."""
    file = write(folder, records, block=64)
    with silence(), recomputing(None, file, Folds()) as words:
        report = audit(file, [OneDecisionLog(), *([words] if words is not None else [])])
    shutil.rmtree(folder)
    return report


def sound_run(seed: int) -> list[Record]:
    """Of a random engine; without grammars, which a trace of a simulated run does not name."""
    drawn = Workload.random(seed, max_requests=6)
    plain = tuple(msgspec.structs.replace(arrival, grammar=None) for arrival in drawn.arrivals)
    faults = Faults(strike=seed % 3, rush=int(seed % 4 == 1))
    strategy = ("random", "pct", "pos")[seed % 3]
    workload = msgspec.structs.replace(drawn, arrivals=plain)
    return simulated(workload, seed, strategy, faults)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, NIGHTLY))])
def test_every_forgery_that_leaves_a_contradiction_is_named(tmp_path: Path, seed: int) -> None:
    records = sound_run(seed)
    clean = audited(tmp_path / "clean", records)
    assert clean.verdict is Verdict.PASS, clean.text()
    unfound: Counter[str] = Counter()
    num_found = num_forged = 0
    for num_forged, forgery in enumerate(forgeries(records, random.Random(seed)), 1):
        report = audited(tmp_path / str(num_forged), forgery.records)
        if report.verdict is not Verdict.PASS:
            assert report.findings or report.missing or report.damage, "it is said what is wrong"
            num_found += 1
        elif not cannot_show(records, forgery):
            unfound[str(forgery.kind)] += 1
    assert dict(unfound) == {}
    assert 3 * num_found > 2 * num_forged > 100


@pytest.mark.parametrize("count", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_sound_run_is_never_called_anything_but_whole(tmp_path: Path, count: int) -> None:
    # A clock that is rushed, which is one in four, may end the stop before everything is told.
    seeds = (seed for seed in range(1000, 1000 + count) if seed % 4 != 1)
    reports = (audited(tmp_path / str(seed), sound_run(seed)) for seed in seeds)
    assert [report.text() for report in reports if report.verdict is not Verdict.PASS] == []


def test_every_reason_why_something_cannot_show_is_said() -> None:
    assert all(len(reason.text.split()) > 4 for reasons in IN_PRINCIPLE.values() for reason in reasons)
