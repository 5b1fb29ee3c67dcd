"""docs/mutation.md, from the results."""

from __future__ import annotations

from collections.abc import Iterator

from tests.mutation.equivalents import EQUIVALENTS
from tests.mutation.judging import ENDLESS, STUCK, Verdict
from tests.mutation.sweep import Row, Sweep

INTRODUCTION = """\
Every function of these rooms, changed in one place: a statement left out, a condition turned round, a boundary moved,
arguments or neighbouring statements swapped, another member of an enum, a return too early, one more or less. The
edits are made from the syntax tree (`tests/mutation/edits.py`), not chosen by a person. Logs, messages, annotations and
assertions are left alone; so are the tables of modules, and edits without which a name has no value.

Each edit of a sample is planted in a process of its own and given to two judges: the default `pawl explore`, from a
seed that is always the same, for a stated number of schedules; and the default tests that reach the edited line, as
far as a stated number of seconds goes, until the first fails. *Only* counts what the other did not notice. *Endless*
loops are told by processor time, *stuck* processes by silence; both are among what is noticed. The edits of a sample
are the first in an order that their names and the seed give. Edits that change nothing that anybody could see are
struck out, with the reason (below).

What survives gets a test and is judged again, so the share says what is left of this sample, and not what a sample with
another seed would show."""


def page(sweeps: dict[str, Sweep]) -> Iterator[str]:
    """Its lines."""
    yield "# Mutation"
    yield ""
    yield "<!-- Written by `make mutation`; do not edit. -->"
    yield ""
    yield from INTRODUCTION.splitlines()
    yield ""
    yield from _table(sweeps)
    yield ""
    yield from _whole(sweeps)
    yield ""
    yield "## Survivors"
    for room, sweep in sweeps.items():
        survivors = [row for row in _rows(sweep) if row.survives]
        if survivors:
            yield ""
            yield f"### {room}"
        for row in sorted(survivors, key=lambda row: (row.file, row.line)):
            yield ""
            yield from _survivor(row)
    yield ""
    yield "## Edits that change nothing"
    yield ""
    for name, reason in sorted(EQUIVALENTS.items()):
        place, _, key = name.partition(": ")
        yield f"- {place}: {_code(key)}: {reason}"


def _rows(sweep: Sweep) -> list[Row]:
    return [row for name, row in sweep.rows.items() if name not in EQUIVALENTS]


def _noticed(verdict: Verdict | None) -> bool:
    return verdict is not None and verdict.noticed


def _table(sweeps: dict[str, Sweep]) -> Iterator[str]:
    heads = ("room", "edits", "judged", "by explore", "by tests", "only explore", "only tests", "endless", "stuck")
    yield "| " + " | ".join((*heads, "survive", "share", "seed, schedules, seconds of tests, date")) + " |"
    yield "| --- |" + " ---: |" * (len(heads) + 1) + " --- |"
    for room, sweep in sweeps.items():
        rows = _rows(sweep)
        explored = [_noticed(row.explored) for row in rows]
        tested = [_noticed(row.tested) for row in rows]
        verdicts = [{verdict.outcome for verdict in (row.explored, row.tested) if verdict is not None} for row in rows]
        survive = sum(row.survives for row in rows)
        cells = [
            len(rows),
            sum(explored),
            sum(tested),
            sum(one and not other for one, other in zip(explored, tested, strict=True)),
            sum(other and not one for one, other in zip(explored, tested, strict=True)),
            *(sum(outcome in outcomes for outcomes in verdicts) for outcome in (ENDLESS, STUCK)),
            survive,
        ]
        share = f"{100 * survive / max(len(rows), 1):.1f} %"
        stated = f"{sweep.seed}, {sweep.schedules}, {sweep.test_seconds:g}, {sweep.date}"
        yield f"| {room} | {sweep.edits:,} | " + " | ".join(map(str, cells)) + f" | {share} | {stated} |"


def _whole(sweeps: dict[str, Sweep]) -> Iterator[str]:
    """How long all of it would take."""
    hours = {}
    for room, sweep in sweeps.items():
        seconds = [
            sum(verdict.seconds for verdict in (row.explored, row.tested) if verdict is not None)
            for row in _rows(sweep)
        ]
        hours[room] = sweep.edits * sum(seconds) / max(len(seconds), 1) / 3600
    parts = ", ".join(f"{room} {value:.0f} h" for room, value in hours.items())
    edits = sum(sweep.edits for sweep in sweeps.values())
    yield f"All {edits:,} edits would take, at the pace of these samples, one at a time: {parts}."


def _survivor(row: Row) -> Iterator[str]:
    before, _, after = row.key.partition(" => ")
    yield f"`{row.file}:{row.line}`, {row.function}, {row.kind}; {_asked(row)}"
    yield ""
    yield "```diff"
    yield f"- {before}"
    yield f"+ {after}"
    yield "```"


def _asked(row: Row) -> str:
    explored = f"{row.explored.count} schedules" if row.explored is not None else "exploration never reaches it"
    tested = f"{row.tested.count} tests" if row.tested is not None else "no test reaches it"
    return f"{explored}, {tested}"


def _code(text: str) -> str:
    return f"`` {text} ``" if "`" in text else f"`{text}`"
