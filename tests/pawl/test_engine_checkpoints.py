"""A server whose old trace files were dropped: what is left begins with a checkpoint, and is judged from there."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest

from pawl.cli import main
from pawl.config import ServerConfig
from pawl.engine import Engine
from pawl.lifecycle.audit import Report, Verdict, audit
from pawl.lifecycle.records import Checkpoint, Record, StepCommitted, StepPlanned, Transition, int32s
from pawl.lifecycle.states import Event
from pawl.lifecycle.trace.format import run_folders, trace_files
from pawl.lifecycle.trace.reader import TraceReader
from pawl.lifecycle.trace.writer import TraceWriter
from pawl.loops.decision_log import OneDecisionLog

PLENTY = 1 << 30


def judged(path: Path) -> Report:
    return audit(path, [OneDecisionLog()])


@pytest.fixture(scope="module", params=["overlap", pytest.param("lockstep", marks=pytest.mark.slow)])
def rotated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder after so many requests that its first files were dropped."""
    folder = tmp_path_factory.mktemp("traces")
    config = ServerConfig(
        model="ghost", trace_dir=str(folder), trace_limit_mb=1, kv_tokens=1024, max_running=8, pacing=request.param
    )
    with Engine(config) as engine:
        for round_ in range(12):
            prompts = [[(round_ * 40 + number + at) % 250 for at in range(200)] for number in range(40)]
            engine.generate(prompts, {"max_new_tokens": 12})
    (run,) = run_folders(folder)
    return run


def test_every_file_but_the_first_begins_with_a_checkpoint(rotated: Path) -> None:
    files = trace_files(rotated)
    assert files[0].name != "trace-000000.pawl", "nothing was dropped: the run is too short"
    assert len(files) > 2
    for file in files:
        assert isinstance(next(iter(TraceReader(file))), Checkpoint)


def test_what_is_left_is_judged_as_a_whole_run_is(rotated: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = judged(rotated)
    assert report.verdict is Verdict.PASS, report.text()
    assert report.from_checkpoint
    assert "from a checkpoint" in report.text()
    assert report.num_judged == report.num_records
    assert main(["replay", str(rotated)]) == 0
    assert "SAME" in capsys.readouterr().out


def test_every_checkpoint_is_a_beginning(rotated: Path, tmp_path: Path) -> None:
    records = [record for file in trace_files(rotated) for record in TraceReader(file)]
    for number, at in enumerate(at for at, record in enumerate(records) if isinstance(record, Checkpoint)):
        report = judged(written(tmp_path / str(number), records[at:]))
        assert report.verdict is Verdict.PASS, report.text()


def written(folder: Path, records: list[Record]) -> Path:
    writer = TraceWriter(folder, PLENTY)
    for record in records:
        writer.append(record)
    writer.close()
    return writer.path


@pytest.mark.parametrize("changed", ["where a step starts", "memory after a step", "who ended", "the checkpoint"])
def test_what_was_changed_after_the_checkpoint_shows(rotated: Path, tmp_path: Path, changed: str) -> None:
    records: list[Record] = list(TraceReader(rotated))
    for at, record in enumerate(records):
        match changed, record:
            case "where a step starts", StepPlanned():
                forged: Record = msgspec.structs.replace(record, starts=int32s(record.starts) + np.int32(1))
            case "memory after a step", StepCommitted():
                forged = msgspec.structs.replace(record, digest=record.digest ^ 1)
            case "who ended", Transition(event=Event.FINISH):
                forged = msgspec.structs.replace(record, request=record.request + 1)
            case "the checkpoint", Checkpoint() if at:
                forged = msgspec.structs.replace(record, state=(record.state or b"").replace(b"received", b"recieved"))
            case _:
                continue
        records[at] = forged
        break
    report = judged(written(tmp_path, records))
    assert report.verdict is Verdict.VIOLATION
    assert "one_decision_log" in {finding.violation.property for finding in report.findings}


def test_a_checkpoint_without_its_state_says_what_it_lacks(rotated: Path, tmp_path: Path) -> None:
    first = next(iter(TraceReader(rotated)))
    assert isinstance(first, Checkpoint)
    path = written(tmp_path, [msgspec.structs.replace(first, state=None, missing="tiers below the device")])
    report = judged(path)
    assert report.verdict is Verdict.INCOMPLETE
    assert "leaves out tiers below the device" in report.missing[0]
    assert main(["replay", str(path)]) == 2
