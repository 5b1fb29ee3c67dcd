"""An audit whose decisions are made again in another process says what one says that does it all by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from pawl.cli import main
from pawl.commands import beside
from pawl.commands.beside import DecidedBeside
from pawl.lifecycle.audit import Report, Verdict, audit
from pawl.lifecycle.records import Gap, Record, StepCommitted, Transition
from pawl.lifecycle.trace.writer import TraceWriter
from pawl.loops.decision_log import OneDecisionLog
from tests.loops.test_replay import record_run

PLENTY = 1 << 30
Change = Callable[[list[Record]], Sequence[Record]]


def first(records: Sequence[Record], kind: type[Record], after: int = 0) -> int:
    return next(at for at, record in enumerate(records) if at >= after and isinstance(record, kind))


def forged(records: list[Record]) -> Sequence[Record]:
    """The digest of memory after a step."""
    at = first(records, StepCommitted, len(records) // 3)
    record = records[at]
    assert isinstance(record, StepCommitted)
    return [*records[:at], msgspec.structs.replace(record, digest=record.digest ^ 1), *records[at + 1 :]]


def contradictory(records: list[Record]) -> Sequence[Record]:
    """A decision that was not taken, and behind it a row that nobody has: judging ends there."""
    changed = list(forged(records))
    at = first(changed, Transition, 2 * len(changed) // 3)
    record = changed[at]
    assert isinstance(record, Transition)
    changed[at] = msgspec.structs.replace(record, row=999)
    return changed


def with_gap(records: list[Record]) -> Sequence[Record]:
    return [*records[: len(records) // 2], Gap(3, "a test"), *records[len(records) // 2 :]]


CHANGES: dict[str, tuple[Change, Verdict]] = {
    "sound": (lambda records: records, Verdict.PASS),
    "forged": (forged, Verdict.VIOLATION),
    "contradictory": (contradictory, Verdict.VIOLATION),
    "cut": (lambda records: records[: len(records) // 2], Verdict.INCOMPLETE),
    "with a gap": (with_gap, Verdict.INCOMPLETE),
}


def written(folder: Path, name: str) -> Path:
    writer = TraceWriter(folder, PLENTY)
    for record in CHANGES[name][0](record_run(1)):
        writer.append(record)
    writer.close()
    return writer.path


def beside_of(path: Path) -> Report:
    shares: list[float] = []
    report = audit(path, [DecidedBeside(path, shares.append)])
    assert shares == sorted(shares)
    return report


@pytest.mark.parametrize("name", CHANGES)
def test_the_report_is_that_of_one_process(name: str, tmp_path: Path) -> None:
    path = written(tmp_path, name)
    alone = audit(path, [OneDecisionLog()])
    assert alone.verdict is CHANGES[name][1]
    assert beside_of(path) == alone


def test_a_process_that_is_lost_leaves_its_part_unjudged(tmp_path: Path) -> None:
    report = audit(written(tmp_path, "sound"), [DecidedBeside(tmp_path / "nowhere", lambda share: None)])
    assert report.verdict is Verdict.INCOMPLETE
    assert report.missing == ("no decision was made again: the process that did was lost",)


def test_the_command_takes_another_process_for_a_long_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    taken: list[Path] = []

    class Noted(DecidedBeside):
        def __init__(self, path: Path, told: Callable[[float], object]) -> None:
            taken.append(path)
            super().__init__(path, told)

    monkeypatch.setattr(beside, "DecidedBeside", Noted)
    path = written(tmp_path, "forged")
    assert main(["audit", str(path)]) == 1
    assert taken == []
    monkeypatch.setattr(beside, "WORTH_IT", 1)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert main(["audit", str(tmp_path)]) == 1
    assert taken == [path]
    assert "one_decision_log" in capsys.readouterr().out
