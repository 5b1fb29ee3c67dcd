"""Damaged and forged traces: each kind of damage is noticed and named, and sound traces never are.

Damage to bytes is noticed by the chain of hashes. A forger who writes a whole new chain must still tell a story that a
scheduler could have lived: what is changed must follow from the recorded inputs, and it does not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest

from pawl.lifecycle.audit import Report, Verdict, audit
from pawl.lifecycle.properties.monitor import PROPERTIES, Monitor
from pawl.lifecycle.records import (
    Cached,
    Closed,
    Contained,
    Delivered,
    Flushed,
    Idled,
    Record,
    Started,
    StepCommitted,
    StepPlanned,
    StepRolledBack,
    Submitted,
    Transition,
    int32s,
)
from pawl.lifecycle.states import Cause, Event, State
from pawl.loops.decision_log import OneDecisionLog
from tests.lifecycle.story import write
from tests.lifecycle.test_trace import spans
from tests.loops.test_replay import record_run

SEEDS = range(1, 4)
"""In each of these runs somebody gives way, and a step is lost."""


def audited(path: Path) -> Report:
    return audit(path, [OneDecisionLog()])


# ---- damage to bytes ----

Bytes = Callable[[bytes, list[tuple[int, int]]], bytes]
"""What becomes of a file, given where its blocks are."""


def _flipped(at: Callable[[list[tuple[int, int]]], int]) -> Bytes:
    def change(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
        index = at(cuts)
        return data[:index] + bytes([data[index] ^ 4]) + data[index + 1 :]

    return change


def _zeroed(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
    start = cuts[3][0] + 150
    return data[:start] + bytes(64) + data[start + 64 :]


def _swapped_blocks(data: bytes, cuts: list[tuple[int, int]]) -> bytes:
    (a, b), (c, d) = cuts[2], cuts[4]
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


DAMAGES: dict[str, tuple[Bytes, Verdict]] = {
    "bit flip in the file's header": (_flipped(lambda cuts: 9), Verdict.CORRUPT),
    "bit flip in a block's header": (_flipped(lambda cuts: cuts[2][0] + 30), Verdict.CORRUPT),
    "bit flip in a block's hash": (_flipped(lambda cuts: cuts[2][0] + 90), Verdict.CORRUPT),
    "bit flip in a record": (_flipped(lambda cuts: cuts[2][1] - 5), Verdict.CORRUPT),
    "bit flip in the last byte": (_flipped(lambda cuts: cuts[-1][1] - 1), Verdict.CORRUPT),
    "a stretch of zeros": (_zeroed, Verdict.CORRUPT),
    "a dropped block": (lambda data, cuts: data[: cuts[2][0]] + data[cuts[2][1] :], Verdict.CORRUPT),
    "a dropped first block": (lambda data, cuts: data[: cuts[0][0]] + data[cuts[0][1] :], Verdict.CORRUPT),
    "a doubled block": (lambda data, cuts: data[: cuts[2][1]] + data[cuts[2][0] :], Verdict.CORRUPT),
    "two blocks exchanged": (_swapped_blocks, Verdict.CORRUPT),
    "garbage at the end": (lambda data, cuts: data + b"garbage" * 40, Verdict.CORRUPT),
    "cut within a header": (lambda data, cuts: data[: cuts[-1][0] + 20], Verdict.INCOMPLETE),
    "cut within a record": (lambda data, cuts: data[:-3], Verdict.INCOMPLETE),
    "cut between two blocks": (lambda data, cuts: data[: cuts[-1][0]], Verdict.INCOMPLETE),
    "cut within the file's header": (lambda data, cuts: data[:7], Verdict.INCOMPLETE),
    "the same run twice": (lambda data, cuts: data + data[cuts[0][0] :], Verdict.CORRUPT),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_bytes_are_noticed_and_named(tmp_path: Path, kind: str) -> None:
    change, verdict = DAMAGES[kind]
    for seed in SEEDS:
        file = write(tmp_path / str(seed), record_run(seed))
        data = file.read_bytes()
        file.write_bytes(change(data, spans(file)))
        report = audited(file)
        assert report.verdict is verdict, report.text()
        assert report.damage or report.missing, "it is said what is wrong"


def test_a_block_of_another_run_is_noticed(tmp_path: Path) -> None:
    ours, other = (write(tmp_path / str(seed), record_run(seed)) for seed in (1, 2))
    (start, end), (other_start, other_end) = spans(ours)[1], spans(other)[1]
    data = ours.read_bytes()
    ours.write_bytes(data[:start] + other.read_bytes()[other_start:other_end] + data[end:])
    assert audited(ours).verdict is Verdict.CORRUPT


def test_a_file_of_another_run_is_noticed(tmp_path: Path) -> None:
    ours, other = (write(tmp_path / str(seed), record_run(seed)) for seed in (1, 2))
    shutil.copy(other, ours.parent / "trace-000001.pawl")
    assert audited(ours.parent).verdict is Verdict.CORRUPT


# ---- forgery: a new chain over changed records ----

Forgery = Callable[[list[Record]], list[Record]]


def _where(records: Sequence[Record], kind: type, holds: Callable[[Any], bool] = lambda record: True) -> int:
    """The middle one of the records of this kind that `holds`."""
    found = [index for index, record in enumerate(records) if isinstance(record, kind) and holds(record)]
    assert found, f"the run has no such {kind.__name__}"
    return found[len(found) // 2]


def _dropped(kind: type, holds: Callable[[Any], bool] = lambda record: True) -> Forgery:
    def forge(records: list[Record]) -> list[Record]:
        index = _where(records, kind, holds)
        return records[:index] + records[index + 1 :]

    return forge


def _doubled(kind: type) -> Forgery:
    def forge(records: list[Record]) -> list[Record]:
        index = _where(records, kind)
        return records[: index + 1] + records[index:]

    return forge


def _late(kind: type) -> Forgery:
    """One place later than it was, behind what was not an order: two orders may come in either order."""

    def forge(records: list[Record]) -> list[Record]:
        found = [
            index
            for index, (record, after) in enumerate(pairwise(records))
            if isinstance(record, kind) and not isinstance(after, Delivered)
        ]
        return _exchanged(records, found[len(found) // 2])

    return forge


def _exchanged(records: list[Record], index: int) -> list[Record]:
    return [*records[:index], records[index + 1], records[index], *records[index + 2 :]]


def _changed(
    kind: type, holds: Callable[[Any], bool] = lambda record: True, **changes: Callable[[Any], Any]
) -> Forgery:
    """Fields of one record replaced by what the functions make of them."""

    def forge(records: list[Record]) -> list[Record]:
        index = _where(records, kind, holds)
        values = {name: change(getattr(records[index], name)) for name, change in changes.items()}
        return [*records[:index], msgspec.structs.replace(records[index], **values), *records[index + 1 :]]

    return forge


def _column(change: Callable[[np.ndarray], Any]) -> Callable[[bytes], bytes]:
    def changed(column: bytes) -> bytes:
        array = int32s(column).copy()
        return np.asarray(change(array), np.int32).tobytes()

    return changed


def _longer_outputs(records: list[Record]) -> list[Record]:
    def longer(record: Submitted) -> Submitted:
        sampling = msgspec.structs.replace(record.sampling, max_new_tokens=record.sampling.max_new_tokens + 1)
        return msgspec.structs.replace(record, sampling=sampling)

    return [longer(record) if isinstance(record, Submitted) else record for record in records]


def _is(event: Event) -> Callable[[Any], bool]:
    return lambda record: record.event == event


def _order(kind: str) -> Callable[[Any], bool]:
    return lambda record: record.kind == kind


def _effective(kind: str, effect: Callable[[Any], bool]) -> Callable[[list[Record]], int]:
    """The place of an order of this kind that was at once followed by such a record."""

    def find(records: list[Record]) -> int:
        told = [record for record in records if not isinstance(record, Cached)]
        orders = [a for a, b in pairwise(told) if isinstance(a, Delivered) and a.kind == kind and effect(b)]
        assert orders, f"no {kind} had an effect"
        return records.index(orders[len(orders) // 2])

    return find


def _without(find: Callable[[list[Record]], int]) -> Forgery:
    def forge(records: list[Record]) -> list[Record]:
        index = find(records)
        return records[:index] + records[index + 1 :]

    return forge


def _renamed(find: Callable[[list[Record]], int], kind: str, **fields: Any) -> Forgery:
    """The order there becomes one of another kind."""

    def forge(records: list[Record]) -> list[Record]:
        index = find(records)
        forged = msgspec.structs.replace(records[index], kind=kind, fields=fields)
        return [*records[:index], forged, *records[index + 1 :]]

    return forge


def _patient(records: list[Record]) -> list[Record]:
    """The first request that ran out of time had more of it."""
    late = next(r.request for r in records if isinstance(r, Transition) and r.cause is Cause.TIMEOUT)
    return [
        msgspec.structs.replace(record, deadline=None)
        if isinstance(record, Submitted) and record.request == late
        else record
        for record in records
    ]


def _made_up(record: Record) -> Forgery:
    """A record that no engine wrote, in the middle."""

    def forge(records: list[Record]) -> list[Record]:
        at = len(records) // 2
        forged = msgspec.structs.replace(record, time=getattr(records[at], "time", 0.0))
        return [*records[:at], forged, *records[at:]]

    return forge


TIMED_OUT = _effective("check_deadlines", lambda r: isinstance(r, Transition) and r.cause is Cause.TIMEOUT)
FLUSHED = _effective("flush_cache", lambda record: isinstance(record, Flushed))
ABORTED = _effective("abort", lambda r: isinstance(r, Transition) and r.event is Event.ABORT)

FORGERIES: dict[str, Forgery] = {
    "a survived failure made up": _made_up(Contained(0, "ValueError", 0.0)),
    "a setting of the loop left out": _changed(
        Started, config=lambda config: {"loop": {key: each for key, each in config["loop"].items() if key != "policy"}}
    ),
    "an order to abort left out": _dropped(Delivered, _order("abort")),
    "a stop string left out": _dropped(Delivered, _order("finish")),
    "a look at deadlines left out": _without(TIMED_OUT),
    "an order to flush left out": _without(FLUSHED),
    "an order after what followed from it": lambda records: _exchanged(records, ABORTED(records)),
    "an abort of another request": _changed(
        Delivered, _order("abort"), fields=lambda fields: fields | {"requests": [fields["requests"][0] + 1]}
    ),
    "an abort for another reason": _changed(
        Delivered, _order("abort"), fields=lambda fields: fields | {"cause": "disconnect"}
    ),
    "a stop string elsewhere": _changed(
        Delivered, _order("finish"), fields=lambda fields: fields | {"num_output": fields["num_output"] + 1}
    ),
    "an abort called a look at deadlines": _renamed(ABORTED, "check_deadlines"),
    "a flush called an end of all": _renamed(FLUSHED, "wait_ends", number=0),
    "an order of no known kind": _renamed(ABORTED, "abort_requests", requests=[1]),
    "an order with a field that it has not": _renamed(FLUSHED, "flush_cache", force=True),
    "a deadline taken away": _patient,
    "an arrival left out": _dropped(Submitted),
    "an admission left out": _dropped(Transition, _is(Event.ADMIT)),
    "a finish left out": _dropped(Transition, _is(Event.FINISH)),
    "an abort left out": _dropped(Transition, _is(Event.ABORT)),
    "a retraction left out": _dropped(Transition, _is(Event.RETRACT)),
    "a plan left out": _dropped(StepPlanned),
    "a commit left out": _dropped(StepCommitted),
    "a rollback left out": _dropped(StepRolledBack),
    "the start left out": _dropped(Started),
    "the end left out": _dropped(Closed),
    "an arrival twice": _doubled(Submitted),
    "a transition twice": _doubled(Transition),
    "a plan twice": _doubled(StepPlanned),
    "a commit twice": _doubled(StepCommitted),
    "an arrival later": _late(Submitted),
    "a plan later": _late(StepPlanned),
    "a commit later": _late(StepCommitted),
    "a transition later": _late(Transition),
    "a request under another number": _changed(Transition, _is(Event.ADMIT), request=lambda number: number + 1),
    "a request in another row": _changed(Transition, _is(Event.ADMIT), row=lambda row: row + 1),
    "another state": _changed(Transition, _is(Event.ADMIT), target=lambda state: State.DECODING),
    "another cause": _changed(Transition, lambda record: record.cause == Cause.LENGTH, cause=lambda cause: Cause.EOS),
    "another step": _changed(Transition, _is(Event.ADMIT), step=lambda step: step + 1),
    "a time before the one before": _changed(StepPlanned, time=lambda time: time - 5),
    "more of the prompt cached": _changed(Transition, _is(Event.ADMIT), num_cached=lambda count: (count or 0) + 4),
    "fewer output tokens": _changed(
        Transition, lambda record: record.cause == Cause.LENGTH, num_output=lambda count: count - 1
    ),
    "another page": _changed(StepPlanned, lambda r: len(r.pages) > 0, pages=_column(lambda pages: (pages + 1) % 20)),
    "the same page for two": _changed(
        StepPlanned, lambda record: len(record.pages) >= 8, pages=_column(lambda pages: np.repeat(pages[0], len(pages)))
    ),
    "a page out of range": _changed(StepPlanned, lambda r: len(r.pages) > 0, pages=_column(lambda pages: pages + 99)),
    "another slot": _changed(StepPlanned, slots=_column(lambda slots: (slots + 1) % 4)),
    "another row in a step": _changed(StepPlanned, rows=_column(lambda rows: rows + 1)),
    "another start": _changed(StepPlanned, starts=_column(lambda starts: starts + 1)),
    "a longer chunk": _changed(StepPlanned, lengths=_column(lambda lengths: lengths + 1)),
    "a column of another length": _changed(StepPlanned, starts=lambda column: column[:-1]),
    "a token more": _changed(StepCommitted, tokens=_column(lambda tokens: np.append(tokens, 7))),
    "a live token called stale": _changed(
        StepCommitted, lambda r: Event.TOKEN in r.events, events=lambda e: bytes([Event.STALE_TOKEN]) * len(e)
    ),
    "a page gone from the counts": _changed(StepCommitted, pages=lambda pages: pages._replace(owned=pages.owned + 1)),
    "free pages called cached": _changed(
        StepCommitted, pages=lambda pages: pages._replace(free=pages.free - 1, cached=pages.cached + 1)
    ),
    "another request received": _changed(
        Closed, counts=lambda counts: msgspec.structs.replace(counts, received=counts.received + 1)
    ),
    "fewer retractions": _changed(
        Closed, counts=lambda counts: msgspec.structs.replace(counts, retractions=counts.retractions + 1)
    ),
    "another reason of a rollback": _changed(StepRolledBack, step=lambda step: step + 1),
    "another pool": _changed(Started, num_pages=lambda count: count - 1),
    "longer outputs asked for": _longer_outputs,
    "another priority of the scheduler": _changed(
        Started, config=lambda config: {"loop": {**config["loop"], "prefill_chunk": 8}}
    ),
}

NAMED_AS_MISSING = (
    *("the start left out", "the end left out", "a survived failure made up", "a setting of the loop left out"),
)
"""After these nobody can say what the engine would have decided."""


@pytest.mark.parametrize("kind", FORGERIES)
def test_forged_records_are_noticed_and_named(tmp_path: Path, kind: str) -> None:
    for seed in SEEDS:
        report = audited(write(tmp_path / str(seed), FORGERIES[kind](record_run(seed))))
        assert report.verdict is not Verdict.PASS, "a forged trace passed"
        assert report.findings or report.missing, "it is said what is wrong"
        decided = [found for found in report.findings if found.violation.property == OneDecisionLog.name]
        assert len(decided) <= 1, "what follows from another decision is no other one"
        if report.verdict is Verdict.INCOMPLETE:
            assert kind in NAMED_AS_MISSING


# ---- sound traces ----


class Cell(NamedTuple):
    pacing: str
    mixed: bool
    policy: str


CELLS = [
    Cell(pacing, mixed, policy)
    for pacing in ("overlap", "lockstep")
    for mixed in (True, False)
    for policy in ("fcfs", "lpm", "priority", "random")
]


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_sound_traces_pass(tmp_path: Path, cell: Cell) -> None:
    for seed in range(10, 16):
        report = audited(write(tmp_path / str(seed), record_run(seed, *cell)))
        assert report.verdict is Verdict.PASS, report.text()


@pytest.mark.slow
def test_a_million_sound_records_raise_no_alarm() -> None:
    count, seed = 0, 100
    while count < 1_000_000:
        monitor = Monitor([*(make() for make in PROPERTIES), OneDecisionLog()])
        records = record_run(seed, *CELLS[seed % len(CELLS)])
        for record in records:
            monitor.observe(record)
        monitor.finish()
        assert monitor.violations == [], f"seed {seed}"
        count, seed = count + len(records), seed + 1


def test_every_kind_of_record_occurs_in_the_runs_that_are_forged() -> None:
    kinds = {type(record) for seed in SEEDS for record in record_run(seed)}
    inputs = {Submitted, Delivered, StepCommitted, StepRolledBack}
    assert inputs | {Transition, StepPlanned, Idled, Flushed, Closed} <= kinds
