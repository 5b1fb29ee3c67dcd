"""Runs of schedulers that are not ours, as lines of JSON: what is wrong is told, and nothing in a file is trusted."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pawl.lifecycle.audit import Report, Verdict, judge
from pawl.lifecycle.outside import events, recorder
from pawl.lifecycle.outside.events import EventReader
from pawl.lifecycle.outside.places import Places
from pawl.lifecycle.outside.properties import outside_properties
from pawl.lifecycle.records import ENCODER, Closed
from pawl.lifecycle.trace.reader import Damage, DamageKind

Line = dict[str, Any]


def segment(request: str, start: int, count: int, pages: list[int], draws: bool = True) -> Line:
    return {"request": request, "start": start, "count": count, "draws": draws, "pages": pages}


def submitted(request: str, prompt: list[int], max_new_tokens: int, **more: Any) -> Line:
    return {"event": "submitted", "request": request, "prompt": prompt, "max_new_tokens": max_new_tokens, **more}


RUN: list[Line] = [
    {"event": "started", "scheduler": "mine", "pages": 6, "page_size": 2, "reproducible": True, "time": 1.0},
    submitted("a", [5, 6, 7], 3, time=1.1),
    submitted("b", [5, 6, 8, 9, 9], 4, stop_token_ids=[4]),
    {"event": "planned", "step": 1, "segments": [segment("a", 0, 3, [40, 41]), segment("b", 0, 3, [42, 43], False)]},
    {"event": "planned", "step": 2, "segments": [segment("a", 3, 1, [40, 41]), segment("b", 3, 2, [42, 43, 44])]},
    {"event": "committed", "step": 1, "tokens": {"a": [1]}, "pages": {"free": 1, "owned": 5}},
    {"event": "committed", "step": 2, "tokens": {"a": [2], "b": [3]}},
    {"event": "preempted", "request": "b"},
    {"event": "planned", "step": 3, "segments": [segment("a", 4, 1, [40, 41, 45])], "time": 2.0},
    {"event": "committed", "step": 3, "tokens": {"a": [2]}},
    {"event": "finished", "request": "a", "reason": "length", "told": 3},
    submitted("c", [5, 6, 7], 2),
    {"event": "admitted", "request": "b", "cached": 2},
    {"event": "planned", "step": 4, "segments": [segment("b", 2, 4, [40, 42, 43]), segment("c", 0, 3, [41, 44])]},
    {"event": "committed", "step": 4, "tokens": {"b": [4], "c": [1]}},
    {"event": "finished", "request": "b", "reason": "stop"},
    {"event": "planned", "step": 5, "segments": [segment("c", 3, 1, [41, 44])]},
    {"event": "lost", "step": 5},
    {"event": "aborted", "request": "c", "told": 1},
    {"event": "stopped", "pages": {"free": 4, "owned": 0, "cached": 2}},
]
"""Two steps overlap, one request is preempted and comes back to a cached prefix, one is aborted, a step is lost."""


def written(lines: list[Line]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def judged(path: Path, lines: list[Line] | bytes) -> Report:
    path = path / "run.jsonl"
    path.write_bytes(
        lines if isinstance(lines, bytes) else b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    )
    return judge(path, EventReader, outside_properties())


def changed(at: int, **fields: Any) -> list[Line]:
    return [line | fields if number == at else line for number, line in enumerate(RUN)]


def test_a_run_in_which_everything_happens_passes(tmp_path: Path) -> None:
    report = judged(tmp_path, RUN)
    assert report.verdict is Verdict.PASS, report.text()
    assert report.num_requests == 3
    assert report.causes == {"length": 1, "stop_token": 1, "client": 1}
    (closed,) = (each for each in EventReader(tmp_path / "run.jsonl") if isinstance(each, Closed))
    counts = msgspec.structs.asdict(closed.counts)
    assert {name: count for name, count in counts.items() if count} == {
        "received": 3,
        "finished": 2,
        "aborted": 1,
        "prompt_tokens": 11,
        "output_tokens": 6,
        "retractions": 1,
    }


WRONG: dict[str, tuple[list[Line], str, str]] = {
    "a page goes to two": (
        changed(4, segments=[segment("a", 3, 1, [40, 41]), segment("b", 3, 2, [42, 43, 40])]),
        "conservation",
        "was taken as free while a request uses it",
    ),
    "a page too many": (
        changed(13, segments=[segment("b", 2, 4, [40, 90, 91]), segment("c", 0, 3, [92, 93])]),
        "conservation",
        "is not one of 6",
    ),
    "counts that do not add up": (changed(5, pages={"free": 2, "owned": 5}), "conservation", "the pool has 6 pages"),
    "pages that nobody gave back": (changed(19, pages={"free": 4, "owned": 2}), "conservation", "no request is live"),
    "a position that was left out": (
        changed(8, segments=[segment("a", 5, 1, [40, 41, 45])]),
        "stream_positions",
        "position 4 is next",
    ),
    "a token drawn too early": (
        changed(3, segments=[segment("a", 0, 2, [40, 41]), segment("b", 0, 3, [42, 43], False)]),
        "stream_positions",
        "draws a token",
    ),
    "an end that is too early": (changed(10, reason="length", request="b"), "legal_lifecycle", "FINISH"),
    "one token short": (
        [line | {"max_new_tokens": 4} if number == 1 else line for number, line in enumerate(RUN)],
        "stream_positions",
        "3 output tokens of 4",
    ),
    "a client that was told less": (changed(10, told=2), "stream_equals_result", "2 left for its client"),
    "a client that was told more after an abort": (changed(18, told=2), "silence_after_abort", "2 tokens left"),
    "a stop that was none": (changed(14, tokens={"b": [5], "c": [1]}), "stop_semantics", "its last token is none"),
    "equal requests with other outputs": (
        changed(14, tokens={"b": [4], "c": [7]}),
        "schedule_equivalence",
        "its equal, had",
    ),
    "a second end": ([*RUN[:11], RUN[10], *RUN[11:]], "legal_lifecycle", "FINISHED"),
    "work after the end": (changed(16, segments=[segment("a", 5, 1, [40, 41, 45])]), "stream_positions", "not at work"),
    "a name that lives twice": ([*RUN[:3], RUN[1], *RUN[3:]], "incarnation", "was submitted before"),
    "steps out of order": ([*RUN[:5], RUN[6], *RUN[7:]], "well_formed", "not the oldest in flight"),
    "time that goes back": (changed(8, time=0.5), "time_order", "time goes back"),
    "no end": ([*RUN[:18], RUN[19]], "legal_lifecycle", "no terminal edge"),
    "a token that never came": (changed(9, tokens={}), "well_formed", "draws 1 tokens, and got 0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_in_a_run_is_told(name: str, tmp_path: Path) -> None:
    lines, property, words = WRONG[name]
    report = judged(tmp_path, lines)
    assert report.verdict is Verdict.VIOLATION, report.text()
    told = [(found.violation.property, found.violation.explanation) for found in report.findings]
    assert any(each == property and words in text for each, text in told), told


def test_a_run_that_ends_early_is_incomplete_wherever_it_ends(tmp_path: Path) -> None:
    for count in range(1, len(RUN)):
        assert judged(tmp_path, RUN[:count]).verdict is Verdict.INCOMPLETE
    whole = written(RUN)
    report = judged(tmp_path, whole[:-20])
    assert report.verdict is Verdict.INCOMPLETE
    at = len(RUN) - 1
    assert report.damage == (Damage(DamageKind.TORN, at, f"it ends inside line {at + 1}"),)


def test_the_last_line_may_have_no_end(tmp_path: Path) -> None:
    assert judged(tmp_path, written(RUN)[:-1]).verdict is Verdict.PASS


HOSTILE = {
    "no JSON": b"{nonsense}",
    "a step of nobody": b'{"event": "planned", "step": 1, "segments": []}',
    "too many stop tokens": b'{"event": "submitted", "request": "a", "prompt": [1], "max_new_tokens": 1, '
    b'"stop_token_ids": [1, 2, 3, 4, 5], "eos_token_ids": [6, 7, 8, 9]}',
    "no event": b'{"event": "exploded"}',
    "no object": b"[1, 2]",
    "no text": b'{"event": "\xff"}',
    "a field is missing": b'{"event": "finished", "request": "a"}',
    "a number too large": b'{"event": "planned", "step": 99999999999999999999, "segments": []}',
    "a number below 0": b'{"event": "admitted", "request": "a", "cached": -1}',
    "deep": b'{"event": "stopped", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "nobody": b'{"event": "preempted", "request": "z"}',
    "no step": b'{"event": "committed", "step": 7, "tokens": {}}',
    "no part": b'{"event": "committed", "step": 1, "tokens": {"a": [1], "b": [1], "c": [1]}}',
    "no prompt": b'{"event": "submitted", "request": "d", "prompt": [], "max_new_tokens": 1}',
    "started again": b'{"event": "started"}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_line_that_is_no_event_is_named_in_one_line(name: str, tmp_path: Path) -> None:
    before = written([*RUN[:4], submitted("c", [1], 1)])
    report = judged(tmp_path, before + HOSTILE[name] + b"\n")
    assert report.verdict is Verdict.CORRUPT
    (told,) = [line for line in report.text().splitlines() if "corrupt at" in line]
    assert "line 6" in told
    assert len(told) < 500


def test_what_a_file_can_make_an_audit_keep_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MOST_LINE", 4096)
    long = written([submitted("d", [1] * 4096, 1)])
    monkeypatch.setattr(events, "MOST_REQUESTS", 8)
    many = [submitted(f"r{number}", [1], 1) for number in range(9)]
    monkeypatch.setattr(events, "MOST_IN_FLIGHT", 8)
    steps = [{"event": "planned", "step": number, "segments": [segment("a", 0, 1, [0])]} for number in range(1, 10)]
    monkeypatch.setattr(events, "MOST_TOKENS", 2)
    start = RUN[:2]
    for name, lines in (
        ("more than 0 MiB", written(RUN[:1]) + long),
        ("more than 8 requests", [RUN[0], *many]),
        ("more than 8 steps", [*start, *steps]),
        ("an output of 2 tokens", [*RUN[:7]]),
    ):
        report = judged(tmp_path, lines)
        assert report.verdict is Verdict.CORRUPT
        assert name in report.text()


def test_a_name_may_come_again_once_its_request_has_ended(tmp_path: Path) -> None:
    lines = [RUN[0]]
    for number in range(600):
        lines.append(submitted("same", [number, 1], 1))
        lines.append({"event": "planned", "step": number + 1, "segments": [segment("same", 0, 2, [3])]})
        lines.append({"event": "committed", "step": number + 1, "tokens": {"same": [2]}})
        lines.append({"event": "finished", "request": "same", "reason": "length"})
    report = judged(tmp_path, [*lines, {"event": "stopped"}])
    assert report.verdict is Verdict.PASS, report.text()
    assert report.num_requests == 600


def test_drafts_that_were_accepted_are_several_tokens_of_one_step(tmp_path: Path) -> None:
    run = [
        RUN[0],
        submitted("a", [5, 6, 7], 4),
        {"event": "planned", "step": 1, "segments": [segment("a", 0, 3, [0, 1])]},
        {"event": "committed", "step": 1, "tokens": {"a": [1]}},
        {"event": "planned", "step": 2, "segments": [segment("a", 3, 3, [0, 1, 2])]},
        {"event": "committed", "step": 2, "tokens": {"a": [2, 3]}},
        {"event": "planned", "step": 3, "segments": [segment("a", 5, 1, [0, 1, 2])]},
        {"event": "committed", "step": 3, "tokens": {"a": [4]}},
        {"event": "finished", "request": "a", "reason": "length", "told": 4},
        {"event": "stopped"},
    ]
    assert judged(tmp_path, run).verdict is Verdict.PASS


def test_what_records_have_no_words_for_is_incomplete_and_no_violation(tmp_path: Path) -> None:
    at = next(number for number, line in enumerate(RUN) if line["event"] == "preempted")
    kept = RUN[at] | {"keeps": True}
    assert judged(tmp_path, [*RUN[:at], kept, *RUN[at + 1 :]]).verdict is Verdict.PASS  # no step is in flight
    report = judged(tmp_path, [*RUN[: at - 1], kept, RUN[at - 1], *RUN[at + 1 :]])
    assert report.verdict is Verdict.INCOMPLETE
    assert "although it lost its memory" in report.text()


def test_without_a_number_of_pages_none_is_judged(tmp_path: Path) -> None:
    lines = [line | {"pages": 0} if number == 0 else line for number, line in enumerate(RUN)]
    lines[4] = WRONG["a page goes to two"][0][4]
    assert judged(tmp_path, lines).verdict is Verdict.PASS


def test_pages_keep_their_numbers_where_they_can() -> None:
    places = Places(3)
    assert [places.of(page) for page in (2, 0, 2, 70, 1, 71)] == [2, 0, 2, 1, 3, 3]


def damaged(chance: random.Random, whole: bytes) -> bytes:
    """A file with something changed below its syntax, or in it."""
    lines = [json.loads(line) for line in whole.splitlines()]
    kind = chance.randrange(4)
    if kind == 0:
        at = chance.randrange(len(whole))
        return whole[:at] + bytes([chance.randrange(256)]) + whole[at + chance.randrange(3) :]
    if kind == 1:
        lines.insert(chance.randrange(len(lines)), chance.choice(lines))
    elif kind == 2:
        del lines[chance.randrange(len(lines))]
    else:
        line = chance.choice(lines)
        name = chance.choice(list(line))
        line[name] = chance.choice([0, 1, -1, 7, 2**29, 0.5, "a", "b", [], [1, 2], {}, None, True, 1e308])
    return written(lines)


@pytest.mark.parametrize("count", [200, pytest.param(20_000, marks=pytest.mark.slow)])
def test_whatever_is_in_a_file_an_audit_ends_with_a_verdict(count: int, tmp_path: Path) -> None:
    whole = written(RUN)
    verdicts = set()
    for seed in range(count):
        chance = random.Random(seed)
        data = whole
        for _ in range(chance.choice((1, 1, 2, 3))):
            try:
                data = damaged(chance, data)
            except ValueError:  # it is no JSON any more
                break
        verdicts.add(judged(tmp_path, data).verdict)
    assert verdicts == set(Verdict)


def variants(value: Any) -> Iterator[Any]:
    """A value of a line, a little different."""
    match value:
        case bool():
            yield not value
        case int() | float():
            yield from (value + 1, value - 1)
        case str():
            yield value + "x"
        case list():
            yield value[1:]
            yield [*value, *value[:1]]
            yield from (
                [*value[:at], other, *value[at + 1 :]] for at in range(len(value)) for other in variants(value[at])
            )
        case dict():
            for name in value:
                yield {key: each for key, each in value.items() if key != name}
                yield from (value | {name: other} for other in variants(value[name]))


def test_what_is_said_of_a_run_in_which_one_thing_is_another_stays_as_it_is(tmp_path: Path) -> None:
    forged = [[*RUN[:at], other, *RUN[at + 1 :]] for at, line in enumerate(RUN) for other in variants(line)]
    forged += [[*RUN[:at], *RUN[at + 1 :]] for at in range(len(RUN))]
    forged += [[*RUN[:at], RUN[at], *RUN[at:]] for at in range(len(RUN))]
    forged += [[*RUN[:at], RUN[at + 1], RUN[at], *RUN[at + 2 :]] for at in range(len(RUN) - 1)]
    said = [judged(tmp_path, lines).text().replace(str(tmp_path), ".") for lines in forged]
    assert len(said) > 400
    assert hashlib.blake2b("\n".join(said).encode(), digest_size=8).hexdigest() == "27116d7fff5fa64c", "\n\n".join(said)


def test_what_is_recorded_of_known_runs_stays_as_it_is(tmp_path: Path) -> None:
    path, made = tmp_path / "run.jsonl", b""
    for lines in (RUN, *(lines for lines, *_ in WRONG.values()), *(changed(at, time=9.5) for at in range(len(RUN)))):
        path.write_bytes(written(lines))
        reader = EventReader(path)
        made += ENCODER.encode(list(reader)) + repr(reader.damage).encode()
    assert hashlib.blake2b(made, digest_size=8).hexdigest() == "39fce7c3218a4bcd"


def test_a_part_goes_on_where_it_begins_with_the_token_drawn_last() -> None:
    made = recorder.OutsideRecorder(lambda record: None)
    made.started(scheduler="mine", num_pages=0, page_size=2, reproducible=False)
    made.submitted(1, [5, 6, 7], 9)

    def goes_on() -> list[int]:
        assert not any(made._goes_on(recorder.Part(1, start, 1, draws=False)) for start in range(8))
        return [start for start in range(8) if made._goes_on(recorder.Part(1, start, 1, draws=True))]

    assert goes_on() == []
    for step, (start, length) in enumerate([(0, 3), (3, 1), (4, 1)], 1):
        made.planned(step, [recorder.Part(1, start, length, draws=True)])
        made.committed(step, {1: [9]})
        assert goes_on() == list(range(2 + step, 8))
    made.preempted(1)
    assert goes_on() == []


def test_how_far_a_file_is_read_is_known_at_each_line(tmp_path: Path) -> None:
    judged(tmp_path, RUN)
    reader = EventReader(tmp_path / "run.jsonl")
    sizes = [len(written([line])) for line in RUN]
    shares = {0.0, *(sum(sizes[:count]) / sum(sizes) for count in range(1, len(RUN) + 1))}
    assert reader.share == 0.0
    seen = [reader.share for _ in reader]
    assert set(seen) <= shares
    assert seen == sorted(seen)
    assert (reader.share, len(set(seen)) > len(RUN) // 2) == (1.0, True)


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_who_ended_before_so_many_others_is_not_known_any_more_and_its_name_may_come_again(
    kept: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "QUARANTINE", kept)

    def life(name: str) -> list[Line]:
        return [submitted(name, [1], 1), {"event": "aborted", "request": name, "told": 0}]

    others = [line for number in range(kept) for line in life(f"r{number}")]
    stopped = {"event": "stopped", "pages": {"free": 6, "owned": 0, "cached": 0}}
    report = judged(tmp_path, [RUN[0], *life("a"), *others, *life("a"), *others[:-2], *others[-2:], stopped])
    assert report.verdict is Verdict.PASS, report.text()
    assert report.num_requests == 2 * kept + 2
    late = {"event": "preempted", "request": "a"}
    known = judged(tmp_path, [RUN[0], *life("a"), *others[2:], late, stopped])
    assert known.verdict is Verdict.VIOLATION, known.text()
    forgotten = judged(tmp_path, [RUN[0], *life("a"), *others, late, stopped])
    assert "no request is called 'a'" in forgotten.text()
    again = judged(
        tmp_path, [RUN[0], *life("a"), submitted("a", [1], 1), *others, late | {"event": "aborted"}, stopped]
    )
    assert again.verdict is Verdict.PASS, again.text()
