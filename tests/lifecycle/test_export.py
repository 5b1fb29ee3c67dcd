"""A trace in other formats says what the trace says."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyarrow import parquet

from pawl.lifecycle.audit import audit
from pawl.lifecycle.export.chrome import chrome_trace
from pawl.lifecycle.export.jsonl import NotARecord, export_jsonl, import_jsonl
from pawl.lifecycle.export.otlp import otlp_trace
from pawl.lifecycle.export.parquet import ParquetUnavailable, export_parquet
from pawl.lifecycle.export.timeline import Timeline, _Builder, timeline
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.legal_lifecycle import LegalLifecycle
from pawl.lifecycle.properties.monitor import Monitor
from pawl.lifecycle.records import DECODER, ENCODER, Gap, Record, Started, StepPlanned, Submitted, TierTold, Transition
from pawl.lifecycle.states import Cause, State
from pawl.lifecycle.trace.reader import TraceReader
from tests.lifecycle.story import sound_run, write
from tests.loops.test_replay import record_run

STORY = sound_run()
RUNS: list[list[Record]] = [STORY.records, *(record_run(seed) for seed in range(3))]


def lines_of(records: list[Record]) -> str:
    output = io.StringIO()
    assert export_jsonl(records, output) == len(records)
    return output.getvalue()


def bytes_of(records: list[Record]) -> bytes:
    return ENCODER.encode(records)


# ---- JSON lines ----


def test_every_record_becomes_one_line_of_json_with_columns_as_lists(tmp_path: Path) -> None:
    made, found = lines_of(STORY.records), io.StringIO()
    export_jsonl(TraceReader(write(tmp_path, STORY.records)), found)
    assert made == found.getvalue()
    lines = [json.loads(line) for line in made.splitlines()]
    plan = lines[STORY.labels["plan 3"]]
    assert (plan["record"], plan["rows"], plan["chained"]) == ("StepPlanned", [0, 1], [1, 1])
    edge = lines[STORY.labels["abort 2"]]
    assert (edge["source"], edge["event"], edge["cause"]) == ("decoding", "abort", "client")
    assert lines[STORY.labels["abort 2"] - 1]["fields"] == {"requests": [2]}


@pytest.mark.parametrize("records", RUNS, ids=["story", "run 0", "run 1", "run 2"])
def test_json_lines_come_back_as_the_same_records(records: list[Record]) -> None:
    assert bytes_of(list(import_jsonl(lines_of(records).splitlines()))) == bytes_of(records)


def test_keys_of_pages_come_back_though_they_are_no_message() -> None:
    told = TierTold("kept", 0, 0, bytes(range(0xB8, 0xD8)), 1.5)
    assert bytes_of(list(import_jsonl([lines_of([told])]))) == bytes_of([told])


def test_an_imported_trace_gets_the_same_verdict(tmp_path: Path) -> None:
    again = list(import_jsonl(lines_of(STORY.records).splitlines()))
    first, second = (audit(write(tmp_path / name, records)) for name, records in (("a", STORY.records), ("b", again)))
    assert (first.verdict, first.num_records) == (second.verdict, second.num_records)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "{}", '{"record": "Started"}', '{"record": "Idled", "time": "now"}', '{"record": "System", "time": 0}'],
)
def test_a_line_that_is_no_record_is_named(line: str) -> None:
    with pytest.raises(NotARecord, match="line 2: "):
        list(import_jsonl(['{"record": "Idled", "time": 0.5}', line]))


def test_empty_lines_are_no_records() -> None:
    line = '{"record": "Idled", "time": 0.5}'
    assert list(import_jsonl(["", line, "  \n", line])) == list(import_jsonl([line, line]))


# ---- timeline ----


def test_intervals_of_a_request_follow_each_other_until_its_end() -> None:
    for records in RUNS:
        line = timeline(records)
        assert line.requests
        for request in line.requests:
            for before, after in pairwise(request.intervals):
                assert before.end == after.start
                assert before.state != after.state
            assert request.ended is not None
            if request.intervals:
                assert request.submitted <= request.intervals[0].start
                assert request.ended == request.intervals[-1].end


def test_outputs_retractions_and_causes_are_those_of_the_terminal_records() -> None:
    for records in RUNS:
        plain = DECODER.decode(ENCODER.encode(records))
        ends = {r.request: r for r in plain if isinstance(r, Transition) and r.target.terminal}
        line = timeline(plain)
        assert [request.request for request in line.requests if request.ended is not None] != []
        for request in line.requests:
            end = ends[request.request]
            assert (request.reached, request.cause, request.num_output) == (end.target, end.cause, end.num_output)
            retracts = [r for r in plain if isinstance(r, Transition) and r.request == request.request]
            assert request.num_retractions == sum(r.event.name == "RETRACT" for r in retracts)


def test_gaps_between_tokens_are_those_between_the_commits_that_drew_them() -> None:
    first, second, _ = timeline(STORY.records).requests
    at = [STORY.records[STORY.labels[f"commit {step}"]].time for step in (2, 3, 4)]
    assert (first.first_token, first.last_token, first.num_drawn) == (at[0], at[2], 3)
    assert first.mean_gap == (at[2] - at[0]) / 2
    assert first.largest_gap == max(at[1] - at[0], at[2] - at[1])
    assert (second.num_drawn, second.mean_gap, second.largest_gap) == (1, None, 0.0)


def test_after_each_record_a_line_is_where_the_table_of_transitions_leads() -> None:
    for records in RUNS:
        builder, legal = _Builder(), LegalLifecycle()
        monitor = Monitor([legal])
        for record in DECODER.decode(ENCODER.encode(records)):
            builder._take(record)
            monitor.observe(record)
            rows = monitor.history.open.values()
            reached = {row: State(int(legal._state[row])) for row in rows}
            assert {row: builder._in_row[row].reached for row in rows} == reached, record
            live = [builder._in_row[row] for row in rows if reached[row] is not State.NEW]
            assert [line.intervals[-1].state for line in live] == [line.reached for line in live]


def test_where_records_break_off_each_line_has_what_its_request_has_had() -> None:
    records, history = DECODER.decode(ENCODER.encode(STORY.records)), History()
    for at, record in enumerate(records[: STORY.labels["submitted 3"]], 1):
        history.advance(record)
        had = {request: int(history.num_output[row]) for request, row in history.open.items()}
        lines = {line.request: line.num_output for line in timeline(records[:at]).requests}
        assert {request: lines[request] for request in had} == had


def test_a_step_that_was_lost_says_why() -> None:
    lost = [step for step in timeline(STORY.records).steps if not step.committed]
    assert [bool(step.reason) for step in lost] == [True]


@pytest.mark.parametrize("changes", [{"row": 9}, {"request": 9}], ids=str)
def test_what_is_said_of_a_request_that_has_not_the_row_changes_no_line(changes: dict[str, int]) -> None:
    at = STORY.labels["retract 3"]
    records = [*STORY.records]
    records.insert(at, msgspec.structs.replace(records[at], **changes))
    assert timeline(records).requests == timeline(STORY.records).requests


def test_records_that_begin_anywhere_have_a_timeline_of_what_they_show() -> None:
    whole = timeline(STORY.records)
    for at in range(len(STORY.records)):
        later = timeline(STORY.records[at:])
        assert {step.step for step in later.steps} <= {step.step for step in whole.steps}
        known = {request.request: request for request in whole.requests}
        for request in later.requests:
            assert request.num_output <= known[request.request].num_output


def test_a_timeline_begins_with_the_first_that_is_known_to_have_happened() -> None:
    for records in RUNS:
        for at in range(0, len(records), 7):
            first = [record.time for record in records[at:] if isinstance(record, Started | Submitted | StepPlanned)]
            assert timeline(records[at:]).start == (first[0] if first else 0.0)


@pytest.mark.parametrize(
    ("first", "kept"),
    [(0, ["e8d22af1", "b2ab4e98", "6ca6655c"]), (13, ["03f75404", "d278fa09", "d8350d9c"])],
    ids=["whole", "from the middle"],
)
def test_what_is_shown_of_a_known_run_stays_as_it_is(first: int, kept: list[str]) -> None:
    line = timeline(DECODER.decode(ENCODER.encode(STORY.records))[first:])
    shown = repr(line), json.dumps(chrome_trace(line)), json.dumps(otlp_trace(line))
    assert [hashlib.blake2b(text.encode(), digest_size=4).hexdigest() for text in shown] == kept, shown


# ---- chrome ----


def spans(line: Timeline, process: int) -> list[dict[str, Any]]:
    events = chrome_trace(line)["traceEvents"]
    return [event for event in events if event["ph"] == "X" and event["pid"] == process]


def test_chrome_events_cover_every_interval_and_step() -> None:
    for records in RUNS:
        line = timeline(records)
        assert json.loads(json.dumps(chrome_trace(line)))["traceEvents"]
        assert len(spans(line, 1)) == sum(len(request.intervals) for request in line.requests)
        assert len(spans(line, 2)) == len(line.steps)
        assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans(line, 1) + spans(line, 2))


def test_each_request_has_a_named_thread_with_one_mark_where_it_ended() -> None:
    line = timeline(STORY.records)
    events = chrome_trace(line)["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert names == {1: "1 r1", 2: "2 r2", 3: "3 r3"}
    marks = {event["tid"]: (event["name"], event["ts"]) for event in events if event["ph"] == "i"}
    assert marks == {
        request.request: (name, round((request.ended - line.start) * 1e6, 1))
        for request, name in zip(
            line.requests, ("finished: length", "aborted: client", "finished: stop_string"), strict=True
        )
        if request.ended is not None
    }


def test_what_was_open_when_the_records_end_lasts_until_then() -> None:
    records = STORY.records[: STORY.labels["plan 3"] + 1]
    line = timeline(records)
    assert line.end == records[-1].time  # type: ignore[union-attr]
    assert [request.ended for request in line.requests] == [None, None]
    assert [request.intervals[-1].end for request in line.requests] == [line.end, line.end]
    assert not [event for event in chrome_trace(line)["traceEvents"] if event["ph"] == "i"]


def test_spans_of_one_thread_do_not_overlap() -> None:
    for records in RUNS:
        by_thread: dict[tuple[int, int], list[tuple[float, float]]] = {}
        line = timeline(records)
        for event in spans(line, 1) + spans(line, 2):
            by_thread.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
        for intervals in by_thread.values():
            intervals.sort()
            for (_, end), (start, _) in pairwise(intervals):
                assert end <= start + 0.1


# ---- OpenTelemetry ----


def test_spans_have_ids_of_the_right_size_and_children_lie_in_their_parents() -> None:
    for records in RUNS:
        (resource,) = otlp_trace(timeline(records))["resourceSpans"]
        (scope,) = resource["scopeSpans"]
        by_id = {span["spanId"]: span for span in scope["spans"]}
        assert len(by_id) == len(scope["spans"])
        for span in scope["spans"]:
            assert (len(bytes.fromhex(span["traceId"])), len(bytes.fromhex(span["spanId"]))) == (16, 8)
            start, end = int(span["startTimeUnixNano"]), int(span["endTimeUnixNano"])
            assert start <= end
            if "parentSpanId" in span:
                parent = by_id[span["parentSpanId"]]
                assert int(parent["startTimeUnixNano"]) <= start
                assert end <= int(parent["endTimeUnixNano"])


def test_aborted_requests_are_errors_with_their_cause() -> None:
    (resource,) = otlp_trace(timeline(STORY.records))["resourceSpans"]
    statuses = [
        span["status"] for span in resource["scopeSpans"][0]["spans"] if span["name"] == "request" and "status" in span
    ]
    assert {"code": 2, "message": str(Cause.CLIENT)} in statuses
    assert {"code": 1} in statuses


# ---- Parquet ----


def test_the_table_has_every_record_and_its_columns(tmp_path: Path) -> None:
    for number, records in enumerate(RUNS):
        path = tmp_path / f"{number}.parquet"
        assert export_parquet(records, path) == len(records)
        rows = parquet.read_table(path).to_pylist()
        assert [row["record"] for row in rows] == [type(record).__name__ for record in records]
        expected = [json.loads(line) for line in lines_of(records).splitlines()]
        for row, values in zip(rows, expected, strict=True):
            for name, value in values.items():
                found = row[name]
                as_text = isinstance(found, str) and not isinstance(value, str)
                assert (json.loads(found) if as_text else found) == value


def test_started_is_there_with_its_configuration(tmp_path: Path) -> None:
    started = RUNS[1][0]
    assert isinstance(started, Started)
    export_parquet(RUNS[1], tmp_path / "t.parquet")
    first = parquet.read_table(tmp_path / "t.parquet").to_pylist()[0]
    assert (first["record"], json.loads(first["config"])) == ("Started", started.config)


def test_without_pyarrow_a_table_is_refused_with_the_package_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ParquetUnavailable, match=r"Parquet needs pyarrow: .*pip install pyarrow"):
        export_parquet(STORY.records, tmp_path / "run.parquet")
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_in_a_trace_is_missing_in_its_timeline() -> None:
    gaps = [Gap(3, "the disk was full"), Gap(1, "the mailbox was full")]
    assert timeline([*STORY.records[:5], *gaps, *STORY.records[5:]]).gaps == gaps
