"""An audit passes only what is whole and sound, and says of the rest what is wrong and where."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from pawl.lifecycle.audit import Report, Verdict, audit
from pawl.lifecycle.records import Checkpoint, Closed, Digest, Gap, Record
from pawl.lifecycle.trace.reader import Damage, DamageKind
from pawl.lifecycle.trace.writer import TraceWriter
from tests.lifecycle.cutting import cut, moments
from tests.lifecycle.story import PLENTY, changed, sound_run, without, write

STORY = sound_run()


def audited(directory: Path, records: Sequence[Record]) -> Report:
    return audit(write(directory, records))


def test_a_sound_and_whole_trace_passes_with_its_statistics(tmp_path: Path) -> None:
    report = audited(tmp_path, STORY.records)
    assert report.verdict == Verdict.PASS == 0
    assert report.num_judged == report.num_records == len(STORY.records)
    assert (report.num_requests, report.num_tokens, report.num_blocks) == (3, 6, 7)
    assert report.causes == {"client": 1, "length": 1, "stop_string": 1}
    assert report.records["StepCommitted"] == 6
    assert (report.findings, report.missing, report.damage, report.open_requests) == ((), (), (), ())


def test_a_violation_is_shown_with_the_records_that_led_to_it(tmp_path: Path) -> None:
    report = audited(tmp_path, changed(STORY, "finish 1", num_output=2))
    assert report.verdict == Verdict.VIOLATION == 1
    finding = next(each for each in report.findings if each.violation.property == "stream_positions")
    assert (finding.violation.request, finding.violation.record) == (1, STORY.labels["finish 1"])
    assert [line.text for line in finding.slice] == [
        "submitted in row 0 with 6 prompt tokens",
        "NEW --submit(none)--> QUEUED in step 0",
        "QUEUED --admit(none)--> PREFILLING in step 0",
        "step 1 planned: positions 0 to 3",
        "step 1 committed: chunk",
        "step 2 planned: positions 4 to 5, draws a token",
        "step 3 planned: positions 6 to 6, draws a token",
        "step 2 committed: first_token",
        "step 4 planned: positions 7 to 7, draws a token",
        "step 3 committed: token",
        "step 4 committed: token",
        "DECODING --finish(length)--> FINISHED in step 4",
    ]


@pytest.mark.parametrize(
    ("records", "request_number", "text"),
    [
        (changed(STORY, "finish 3", num_output=7), 3, "step 6 rolled back: the worker was lost"),
        (changed(STORY, "submitted 2", row=0), 1, "row 0 is given to request 2"),
        (without(STORY, "finish 1"), 1, "closed: stopped"),
    ],
)
def test_a_slice_tells_whatever_became_of_the_request(
    tmp_path: Path, records: list[Record], request_number: int, text: str
) -> None:
    report = audited(tmp_path, records)
    (finding,) = [each for each in report.findings if each.violation.request == request_number][:1]
    assert text in [line.text for line in finding.slice]


def test_a_violation_without_a_request_shows_the_records_before_it(tmp_path: Path) -> None:
    report = audited(tmp_path, changed(STORY, "plan 4", step=3))
    (finding,) = report.findings
    assert [line.text for line in finding.slice][-1] == "StepPlanned"
    assert len(finding.slice) == 5


def test_a_record_that_cannot_be_digested_is_shown_by_its_kind_alone(tmp_path: Path) -> None:
    report = audited(tmp_path, changed(STORY, "submit 3", row=2**40))
    finding = report.findings[0]
    assert (finding.violation.property, finding.violation.request) == ("well_formed", 3)
    assert [line.text for line in finding.slice] == ["submitted in row 1 with 9 prompt tokens", "Transition"]


# ---- incomplete: never PASS ----


def test_a_gap_makes_a_trace_incomplete_whatever_follows(tmp_path: Path) -> None:
    at = STORY.labels["commit 1"]
    sound = [*STORY.records[:at], Gap(3, "the recorder's mailbox was full"), *STORY.records[at + 2 :]]
    report = audited(tmp_path, sound)
    assert report.verdict == Verdict.INCOMPLETE == 2
    assert report.num_judged == at
    assert report.open_requests == (1, 2)
    assert report.missing == (f"3 records are missing after record {at - 1}: the recorder's mailbox was full",)


def test_a_violation_before_a_gap_is_still_a_violation(tmp_path: Path) -> None:
    records = [*changed(STORY, "admit 1", num_cached=6)[:10], Gap(1, "lost")]
    report = audited(tmp_path, records)
    assert report.verdict == Verdict.VIOLATION
    assert report.missing


@pytest.mark.parametrize(
    ("last", "known"),
    [
        ("commit 1", "2 requests are open"),
        ("answer 2", "2 ends were not told to clients"),
        ("answer 3", "every request had ended, and its client was told"),
    ],
)
def test_a_trace_that_was_never_closed_says_what_is_known_at_its_end(tmp_path: Path, last: str, known: str) -> None:
    records = [*STORY.records[: STORY.labels[last] + 1]]
    report = audited(tmp_path, [record for record in records if not isinstance(record, Closed)])
    assert report.verdict == Verdict.INCOMPLETE
    text = f"the engine never closed the trace: at its last record {known}, and nothing later is recorded"
    assert report.missing == (text,)


@pytest.mark.parametrize("last", ["closed", "answer 2", "answer 3"])
def test_a_stopped_engine_without_all_replies_of_its_gateway_is_incomplete(tmp_path: Path, last: str) -> None:
    report = audited(tmp_path, STORY.records[: STORY.labels[last] + 1])
    assert report.verdict == Verdict.INCOMPLETE
    assert report.missing == ("what clients were told last is not recorded to the end",)


def test_a_trace_without_the_start_is_incomplete(tmp_path: Path) -> None:
    report = audited(tmp_path, STORY.records[1:])
    assert report.verdict == Verdict.INCOMPLETE
    assert report.missing == ("the trace does not begin with the start of the engine",)


def test_a_trace_closed_for_another_reason_with_open_requests_is_incomplete(tmp_path: Path) -> None:
    end = STORY.records[STORY.labels["closed"]]
    assert isinstance(end, Closed)
    counts = msgspec.structs.replace(end.counts, finished=1, live=1)
    records = [
        *without(STORY, "finish 3")[: STORY.labels["closed"] - 1],
        Closed("tracing was turned off", msgspec.structs.replace(counts, output_tokens=6)),
    ]
    report = audited(tmp_path, records)
    assert report.verdict == Verdict.INCOMPLETE
    assert report.missing == ("1 requests were open when the trace was closed: tracing was turned off",)
    assert report.open_requests == (3,)


def test_a_torn_trace_says_up_to_which_block_it_reads_and_who_was_open(tmp_path: Path) -> None:
    file = write(tmp_path, STORY.records, block=11)
    file.write_bytes(file.read_bytes()[:-1])
    report = audit(file)
    assert report.verdict == Verdict.INCOMPLETE
    assert [(each.kind, each.block) for each in report.damage] == [("torn", 4)]
    assert (report.num_blocks, report.open_requests) == (4, (3,))
    assert "torn at block 4" in report.text()
    assert "open there: requests 3" in report.text()


def test_a_killed_engine_leaves_a_trace_that_names_its_open_requests(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from pawl.lifecycle.trace.reader import Damage, DamageKind
from pawl.lifecycle.trace.writer import TraceWriter
from tests.lifecycle.story import sound_run
story = sound_run()
writer = TraceWriter(Path({str(tmp_path)!r}), {PLENTY})
for record in story.records[: story.labels["commit 2"]]:
    writer.append(record)
writer.flush()
for record in story.records[story.labels["commit 2"] : story.labels["commit 4"]]:
    writer.append(record)
os.kill(os.getpid(), signal.SIGKILL)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == -9
    report = audit(tmp_path)
    assert report.verdict == Verdict.INCOMPLETE
    assert report.num_records == STORY.labels["commit 2"]
    assert report.open_requests == (1, 2)


def test_a_trace_whose_beginning_was_dropped_is_incomplete_and_not_judged(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path, 1 << 20)
    for record in STORY.records:
        if not isinstance(record, Checkpoint):  # what follows the newest one stays
            writer.append(record)
    for step in range(20_000):
        writer.append(Digest(step, 2**63))
        if step % 50 == 49:
            writer.append(Gap(0, "x" * 10_000))
    writer.close()
    report = audit(tmp_path)
    assert report.verdict == Verdict.INCOMPLETE
    assert [each.kind for each in report.damage] == ["truncated"]
    assert report.num_judged == 0


def test_what_begins_with_a_checkpoint_is_judged_from_there_and_the_report_says_so(tmp_path: Path) -> None:
    records = sound_run().records
    at = list(moments(records))[2]
    report = audited(tmp_path / "cut", cut(records, at))
    assert (report.verdict, report.num_judged) == (Verdict.PASS, len(records) - at + 1)
    assert "from a checkpoint" in report.text()
    assert "from a checkpoint" not in audited(tmp_path / "whole", records).text()


# ---- corrupt ----


def test_a_changed_trace_is_corrupt_even_when_it_also_shows_a_violation(tmp_path: Path) -> None:
    file = write(tmp_path, changed(STORY, "admit 1", num_cached=6))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    report = audit(file)
    assert report.verdict == Verdict.CORRUPT == 3
    assert [(each.kind, each.block) for each in report.damage] == [("corrupt", 6)]
    assert report.findings[0].violation.property == "stream_positions"


# ---- rendering ----


def test_a_report_has_a_line_for_each_thing_that_is_wrong_with_the_file(tmp_path: Path) -> None:
    kinds = (DamageKind.TORN, DamageKind.CORRUPT)
    damage = tuple(Damage(kind, number, f"reason {number}") for number, kind in enumerate(kinds))
    report = msgspec.structs.replace(
        audited(tmp_path, STORY.records), damage=damage, missing=("an end", "a start"), contained=("one", "another")
    )
    lines = report.text().splitlines()
    told = [f"  {kind} at block {number}: reason {number}" for number, kind in enumerate(kinds)]
    assert [line for line in lines if "block " in line and "reason" in line] == told
    assert [line for line in lines if "incomplete" in line] == ["  incomplete: an end", "  incomplete: a start"]
    assert [line for line in lines if "survived" in line] == ["  survived: one", "  survived: another"]


def test_a_report_says_how_many_ended_by_each_cause(tmp_path: Path) -> None:
    lines = audited(tmp_path, STORY.records).text().splitlines()
    assert lines[2] == "  ended: client 1, length 1, stop_string 1"


@pytest.mark.parametrize("label", ["commit 2", "finish 3", "submitted 1"])
def test_reports_render_as_text_and_as_json(tmp_path: Path, label: str) -> None:
    report = audited(tmp_path, without(STORY, label))
    plain = json.loads(json.dumps(report.as_dict()))
    assert [each["violation"]["record"] for each in plain["findings"]] == [
        each.violation.record for each in report.findings
    ]
    assert plain["verdict"] == "VIOLATION"
    text = report.text()
    assert text.startswith("VIOLATION")
    for finding in report.findings:
        assert finding.violation.explanation in text
        assert all(line.text in text for line in finding.slice)
