"""Whatever is changed in a trace, the audit names it, or it is of a kind that no trace can show.

The forger knows nothing of what records mean, so a new field is forged as well: it shows, or somebody says why not.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from pawl.actors.simulation.exploration import silence
from pawl.actors.simulation.faults import Faults
from pawl.build.grammars import Folds
from pawl.commands.audit import recomputing
from pawl.lifecycle.audit import Report, Verdict, audit
from pawl.lifecycle.properties.grammar import GrammarIsAFold
from pawl.lifecycle.records import Record
from pawl.loops.decision_log import OneDecisionLog
from pawl.loops.recomputed import Recomputed
from pawl.testing.expectations import simulated_fold
from pawl.testing.models import GHOST
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
    # An engine whose rank has lost its host again and again ends without an end of its trace.
    faults = Faults(strike=seed % 3 if drawn.shape.rank_hosts == 1 else 0, rush=int(seed % 4 == 1))
    strategy = ("random", "pct", "pos")[seed % 3]
    workload = msgspec.structs.replace(drawn, arrivals=plain)
    return simulated(workload, seed, strategy, faults)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, NIGHTLY))])
def test_every_forgery_that_leaves_a_contradiction_is_named(tmp_path: Path, seed: int) -> None:
    records = sound_run(seed)
    forge_all(records, tmp_path, seed, audited)


class Configured(NamedTuple):
    """Runs of one configuration."""

    shape: dict[str, Any]
    has: Callable[[Workload], bool] = lambda workload: True
    """Whether a workload that was drawn for it uses it."""


def _asks(*fields: str) -> Callable[[Workload], bool]:
    return lambda workload: any(getattr(arrival, field) for arrival in workload.arrivals for field in fields)


def _orders(word: str) -> Callable[[Workload], bool]:
    return lambda workload: any(word in type(control.body).__name__ for control in workload.controls)


CONFIGURED = {
    "vectors": Configured({}, _asks("embed")),
    "scores": Configured({}, _asks("top_logprobs", "token_ids_logprob", "prompt_logprobs")),
    "grammars": Configured({}, _asks("grammar")),
    "sessions": Configured({}, _asks("session")),
    "adapters": Configured({"max_loras": 1, "max_loaded_loras": 2}, _asks("adapter")),
    "drafts": Configured({"speculate": "ngram"}),
    "weights": Configured({}, _orders("Weight")),
    "released memory": Configured({}, _orders("Memory")),
    "pauses": Configured({}, _orders("Pause")),
    "a tier": Configured({"host_pages": 6, "num_pages": 5, "window": None}),
    "files": Configured({"host_pages": 2, "storage_pages": 12, "num_pages": 4, "window": None}),
    "replicas": Configured({"replicas": 2}),
    "prefilled elsewhere": Configured({"replicas": 1, "prefillers": 1, "host_pages": 8, "window": None}),
}


def configured_run(configured: Configured, seed: int) -> list[Record]:
    """Of the first replica; seeds from `seed` on are tried."""
    drawn = (Workload.random(number, max_requests=6, **configured.shape) for number in count(seed))
    return simulated(next(filter(configured.has, drawn)), seed, ("random", "pct", "pos")[seed % 3], Faults())


def audited_with_grammars(folder: Path, records: list[Record]) -> Report:
    """As `pawl audit` does it, with the vocabulary of a simulated run, which its trace does not name."""
    file = write(folder, records, block=64)
    with silence(), np.errstate(all="ignore"):
        report = audit(file, [OneDecisionLog(), GrammarIsAFold(simulated_fold), Recomputed(GHOST.compute)])
    shutil.rmtree(folder)
    return report


@pytest.mark.slow
@pytest.mark.parametrize("seed", [70_000, 80_000])
@pytest.mark.parametrize("name", CONFIGURED)
def test_every_forgery_of_a_configuration_is_named_as_well(tmp_path: Path, name: str, seed: int) -> None:
    forge_all(configured_run(CONFIGURED[name], seed), tmp_path, seed, audited_with_grammars)


def forge_all(records: list[Record], folder: Path, seed: int, audited: Callable[[Path, list[Record]], Report]) -> None:
    """Every forgery of a sound run that leaves a contradiction is named."""
    clean = audited(folder / "clean", records)
    assert clean.verdict is Verdict.PASS, clean.text()
    unfound: Counter[str] = Counter()
    num_found = num_forged = 0
    for num_forged, forgery in enumerate(forgeries(records, random.Random(seed)), 1):
        report = audited(folder / str(num_forged), forgery.records)
        if report.verdict is not Verdict.PASS:
            assert report.findings or report.missing or report.damage, "it is said what is wrong"
            num_found += 1
        elif not cannot_show(records, forgery):
            unfound[str(forgery.kind)] += 1
    assert dict(unfound) == {}
    assert 3 * num_found > 2 * num_forged > 100


@pytest.mark.parametrize("num_runs", [20, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_sound_run_is_never_called_anything_but_whole(tmp_path: Path, num_runs: int) -> None:
    # A clock that is rushed, which is one in four, may end the stop before everything is told.
    seeds = (seed for seed in range(1000, 1000 + num_runs) if seed % 4 != 1)
    reports = (audited(tmp_path / str(seed), sound_run(seed)) for seed in seeds)
    assert [report.text() for report in reports if report.verdict is not Verdict.PASS] == []


def test_every_reason_why_something_cannot_show_is_said() -> None:
    assert all(len(reason.text.split()) > 4 for reasons in IN_PRINCIPLE.values() for reason in reasons)
