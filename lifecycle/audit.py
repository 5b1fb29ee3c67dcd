"""The audit of a recorded run: was everything legal, and is the record complete and unchanged?

    0 PASS         the trace is whole and every property holds
    1 VIOLATION    a property does not hold
    2 INCOMPLETE   nothing wrong in what there is, but part of the run is missing; never reported as PASS
    3 CORRUPT      the trace was changed after it was written, or holds what no engine records

A corrupt trace is reported as such even when the part before the damage shows a violation; both are in the report.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import IntEnum
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from pawl.lifecycle.hand_overs import role_of
from pawl.lifecycle.properties.base import ENDS, Property, Violation, on
from pawl.lifecycle.properties.dispatch import Dispatch, kind_of
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.properties.monitor import PROPERTIES, Monitor
from pawl.lifecycle.records import (
    STOPPED,
    Checkpoint,
    Contained,
    Gap,
    Record,
    Started,
    StepCommitted,
    Submitted,
    Transition,
    num_tokens,
    uint8s,
)
from pawl.lifecycle.slices import Line as Line
from pawl.lifecycle.slices import Slice
from pawl.lifecycle.trace.reader import Damage, DamageKind, Reader, TraceReader

MAX_SLICES = 8
"""Violations whose records are looked up for the report."""


class Verdict(IntEnum):
    """Exit code of `pawl audit`."""

    PASS = 0
    VIOLATION = 1
    INCOMPLETE = 2
    CORRUPT = 3


class Finding(msgspec.Struct, frozen=True):
    """A violation, and the records up to it that concern its request (without a request: the last few records)."""

    violation: Violation
    slice: tuple[Line, ...]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found."""

    path: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    missing: tuple[str, ...]
    """Why the record is not whole; empty for a complete trace."""
    damage: tuple[Damage, ...]
    from_checkpoint: bool
    """The beginning was dropped: what is left begins with a checkpoint, and is judged from there."""
    num_blocks: int
    num_records: int
    num_judged: int
    """Records judged: up to the first gap, damage or contradiction."""
    records: dict[str, int]
    """By type."""
    causes: dict[str, int]
    """Ends by cause."""
    num_requests: int
    num_tokens: int
    """Output tokens committed."""
    contained: tuple[str, ...]
    """Failures of the scheduler that it survived, and the request that each ended."""
    open_requests: tuple[int, ...]
    """Requests without an end where judging stopped."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as for JSON."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        plain["verdict"] = self.verdict.name
        return plain

    def text(self) -> str:
        """For a terminal."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield f"{self.verdict.name}  {self.path}"
        yield (
            f"  {self.num_records} records in {self.num_blocks} blocks, {self.num_judged} judged; "
            f"{self.num_requests} requests, {self.num_tokens} output tokens"
        )
        if self.from_checkpoint:
            yield "  from a checkpoint: what came before it was dropped"
        if self.causes:
            yield "  ended: " + ", ".join(f"{cause} {count}" for cause, count in sorted(self.causes.items()))
        for failure in self.contained:
            yield f"  survived: {failure}"
        for reason in self.missing:
            yield f"  incomplete: {reason}"
        for damage in self.damage:
            yield f"  {damage.kind} at block {damage.block}: {damage.reason}"
        if self.open_requests:
            shown = ", ".join(map(str, self.open_requests[:20]))
            more = len(self.open_requests) - 20
            yield f"  open there: requests {shown}" + (f" and {more} more" if more > 0 else "")
        for finding in self.findings:
            found = finding.violation
            concerned = "" if found.request is None else f", request {found.request}"
            yield f"  violated: {found.property} at record {found.record}{concerned}: {found.explanation}"
            for line in finding.slice:
                yield f"    {line.record:>8}  {line.text}"


class _Statistics(Dispatch):
    """Counts over all records that could be read."""

    def __init__(self) -> None:
        self.records: Counter[type[Record]] = Counter()
        self.causes: Counter[str] = Counter()
        self.num_tokens = 0
        self.contained: list[str] = []

    def count(self, block: Sequence[Record]) -> None:
        self.records.update(map(type, block))
        for record in block:
            method = self.methods.get(kind_of(record))
            if method is not None:
                method(self, record)

    @on(StepCommitted)
    def _committed(self, record: StepCommitted) -> None:
        with contextlib.suppress(ValueError):  # columns that do not fit: the judges say so
            self.num_tokens += int(num_tokens(uint8s(record.events), record.counts).sum())

    @on(*ENDS)
    def _ended(self, record: Transition) -> None:
        self.causes[record.cause] += 1

    @on(Contained)
    def _survived(self, record: Contained) -> None:
        whom = f"request {record.request}" if record.request else "nobody"
        self.contained.append(f"{record.failure}, which ended {whom}")


def audit(path: Path, also: Sequence[Property] = (), told: Callable[[float], object] = lambda share: None) -> Report:
    """Judge the trace at `path` (a file, a run's folder, or a directory of runs: the newest), by the properties of this
    room and those of others in `also`. `told` hears which share of it is judged.

    Raises FileNotFoundError when there is no trace.
    """
    return judge(path, TraceReader, [*(make() for make in PROPERTIES), *also], told)


def judge(
    path: Path,
    make_reader: Callable[[Path], Reader],
    properties: Sequence[Property],
    told: Callable[[float], object] = lambda share: None,
) -> Report:
    """Judge by these properties what a reader finds at `path`; another one reads it again where there is something to
    show. Raises OSError."""
    reader, statistics = make_reader(path), _Statistics()
    monitor = Monitor(properties)
    missing: list[str] = []
    num_judged = 0
    judging = True
    from_checkpoint = False
    for block in reader.blocks():
        if reader.num_records == len(block) and block:
            from_checkpoint, lacking = _beginning(block[0])
            missing += lacking
            judging = from_checkpoint or not isinstance(block[0], Checkpoint)
        judging = judging and not _damage(reader, from_checkpoint)
        statistics.count(block)
        for record in block:
            if judging and isinstance(record, Gap):
                missing.append(f"{record.count} records are missing after record {num_judged - 1}: {record.reason}")
                judging = False
            if judging and monitor.judging:
                monitor.observe(record)
                num_judged += 1
        told(reader.share)
    damage = _damage(reader, from_checkpoint)
    whole = judging and not damage
    missing += _missing(monitor, whole)
    monitor.finish(whole and not missing)
    if whole and not missing:
        missing += [each.unjudged for each in monitor.properties if each.unjudged]
    violations = tuple(sorted(monitor.violations, key=lambda each: each.record))
    history = monitor.history
    return Report(
        path=str(path),
        verdict=Verdict.CORRUPT if monitor.indigestible else _verdict(violations, missing, damage),
        findings=_findings(make_reader(path), violations),
        missing=tuple(missing),
        damage=damage,
        from_checkpoint=from_checkpoint,
        num_blocks=reader.num_blocks,
        num_records=reader.num_records,
        num_judged=num_judged,
        records={kind.__name__: count for kind, count in statistics.records.items()},
        causes=dict(statistics.causes),
        num_requests=statistics.records[Submitted],
        num_tokens=statistics.num_tokens,
        contained=tuple(statistics.contained),
        open_requests=tuple(history.open),
    )


def _beginning(first: Record) -> tuple[bool, Sequence[str]]:
    """Whether a trace can be judged from this record, a checkpoint, and what it lacks at its beginning."""
    if isinstance(first, Checkpoint):
        lacking = f"the trace begins with a checkpoint that leaves out {first.missing}"
        return first.state is not None, () if first.state is not None else (lacking,)
    return False, () if isinstance(first, Started) else ("the trace does not begin with the start of the engine",)


def _damage(reader: Reader, from_checkpoint: bool) -> tuple[Damage, ...]:
    """What is wrong with the files; of a trace that is judged from a checkpoint, those before it may be gone."""
    return tuple(each for each in reader.damage if not (from_checkpoint and each.kind is DamageKind.TRUNCATED))


def _missing(monitor: Monitor, whole: bool) -> Iterator[str]:
    """What a trace that could be read to its end still lacks."""
    history = monitor.history
    closed, num_open = history.closed, len(history.open)
    if not whole or not monitor.judging:
        return
    if closed is None:
        yield f"the engine never closed the trace: {_known_last(history)}, and nothing later is recorded"
    elif closed.reason != STOPPED:
        yield f"{num_open} requests were open when the trace was closed: {closed.reason}"
    # A prefill replica has no clients: decode replicas ask it, and answer theirs.
    elif not history.answered and role_of(history.started) != "prefill":
        yield "what clients were told last is not recorded to the end"


def _known_last(history: History) -> str:
    """What the last record leaves open, of an engine that was killed behind it."""
    has_clients = role_of(history.started) != "prefill"
    untold = sum(1 for _ in history.pairing.unanswered()) if has_clients else 0
    left = {"requests are open": len(history.open), "ends were not told to clients": untold}
    found = " and ".join(f"{count} {what}" for what, count in left.items() if count)
    rest = "every request had ended, and its client was told" if has_clients else "every request had ended"
    return f"at its last record {found or rest}"


def _verdict(violations: Iterable[Violation], missing: Iterable[str], damage: Iterable[Damage]) -> Verdict:
    if any(each.kind == DamageKind.CORRUPT for each in damage):
        return Verdict.CORRUPT
    if any(violations):
        return Verdict.VIOLATION
    return Verdict.INCOMPLETE if any(missing) or any(damage) else Verdict.PASS


# ---- causal slices ----


def _findings(again: Reader, violations: tuple[Violation, ...]) -> tuple[Finding, ...]:
    """Each violation with its slice; what was judged is read once more, as far as the last violation that is shown."""
    if not violations:
        return ()
    shown = violations[:MAX_SLICES]
    slices = [Slice(violation) for violation in shown]
    last = max(violation.record for violation in shown)
    for number, record in enumerate(chain.from_iterable(again.blocks())):
        if number > last:
            break
        for each in slices:
            each.observe(number, record)
    return tuple(
        Finding(violation, tuple(slices[index].lines) if index < len(slices) else ())
        for index, violation in enumerate(violations)
    )
