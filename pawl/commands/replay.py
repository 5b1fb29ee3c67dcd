"""`pawl replay TRACE`: run a recorded run again and compare. 0 the same, 1 it differs, 2 it cannot be replayed whole,
3 the trace is damaged; 4 there is none. `pawl replay schedule.json`: run again what `pawl explore` found, or what
`pawl trace export scenario` made of a trace."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pawl.commands.failures import CommandFailed, printable
from pawl.commands.trace import add_trace, open_trace

if TYPE_CHECKING:
    from pawl.lifecycle.trace.reader import TraceReader
    from pawl.testing.plugins import KeptPart
    from pawl.testing.scenario import Scenario
    from pawl.testing.shape import Shape

SCENARIO_SCHEDULES = 400
"""At the most, for what a recorded run showed to show again."""
EXIT_SAME, EXIT_DIFFERS, EXIT_INCOMPLETE, EXIT_DAMAGED = range(4)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The trace."""
    add_trace(parser, "; or a schedule that `pawl explore` saved, or a scenario of `pawl trace export scenario`")
    parser.epilog = (
        "exit status: 0 every decision came out as recorded, 1 one did not, 2 part of the run is missing, "
        "3 the trace is damaged, 4 there is no trace to read"
    )


def run(arguments: argparse.Namespace) -> int:
    """Replay, say how it went; returns the status."""
    if arguments.trace is not None and _is_json(arguments.trace):
        return _replay_file(arguments.trace)
    from pawl.lifecycle.trace.reader import DamageKind
    from pawl.loops.replay import Diverged, Impossible, NotReplayable, replay
    from pawl.memory.violation import MemoryViolation

    reader = open_trace(arguments.trace)
    began = time.perf_counter()
    try:
        done = replay(reader)
    except Diverged as difference:
        print(f"DIFFERS at record {difference.number}")
        print(printable(_side_by_side(difference)))
        return EXIT_DIFFERS
    except (Impossible, MemoryViolation) as error:
        print(printable(f"IMPOSSIBLE: what is recorded cannot be done: {error}"))
        return EXIT_DIFFERS
    except NotReplayable as error:
        print(printable(f"NOT REPLAYABLE: {error}"))
        return EXIT_DAMAGED if _damaged(reader) else EXIT_INCOMPLETE
    seconds = time.perf_counter() - began
    counters = done.loop.counters
    print(reader.files[0].parent)
    print(
        f"SAME: {done.number:,} records, {counters.received:,} requests and {counters.steps:,} steps, "
        f"every decision as recorded ({seconds:.2f} s)"
    )
    for violation in done.violations:
        print(printable(f"a property of memory was broken on the way: {violation}"))
    for damage in reader.damage:
        print(f"{damage.kind}: {damage.reason}")
    if not done.closed:
        print("incomplete: the engine never closed the trace")
    if _damaged(reader):
        return EXIT_DAMAGED
    # Without its first files a run is replayed from a checkpoint: nothing is missing then.
    return EXIT_SAME if done.closed and not reader.damage_but(DamageKind.TRUNCATED) else EXIT_INCOMPLETE


def _damaged(reader: TraceReader) -> bool:
    """Whether more is wrong with the files than that their beginning or end is missing."""
    from pawl.lifecycle.trace.reader import DamageKind

    return bool(reader.damage_but(DamageKind.TORN, DamageKind.TRUNCATED))


def _side_by_side(difference: Any) -> str:
    """The fields in which the recorded and the repeated record differ, or the whole of the one there is."""
    from pawl.lifecycle.export.jsonl import as_dict
    from pawl.lifecycle.records import DECODER, ENCODER

    def plain(record: Any) -> dict[str, Any]:
        try:
            return {} if record is None else as_dict(DECODER.decode(ENCODER.encode([record]))[0])
        except ValueError:  # a column that no engine records
            return {"record": f"{record!s:.300}"}

    recorded, made = plain(difference.recorded), plain(difference.made)
    if recorded.get("record") != made.get("record"):
        return f"  recorded    {recorded or 'nothing'!s:.1000}\n  made again  {made or 'nothing'!s:.1000}"
    lines = [f"  {recorded['record']}"]
    for name, value in recorded.items():
        if value != made[name]:
            lines.append(f"    {name}: recorded {value!s:.1000}, made again {made[name]!s:.1000}")
    return "\n".join(lines)


# ---- what is no trace ----


def _is_json(path: Path) -> bool:
    """Whether the file is a schedule or a scenario, whatever it is called: a trace never begins like that."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(1) == b"{"


def _replay_file(path: Path) -> int:
    """A schedule, or a scenario."""
    from pawl.testing.scenario import Scenario

    try:
        scenario = Scenario.load(path)
    except ValueError:
        return _replay_schedule(path)
    return _show(scenario, path)


def _load_own(shape: Shape, kept: dict[str, KeptPart] | None = None) -> None:
    """Load the parts of the engine that were the user's own. Raises CommandFailed."""
    from pawl.testing.plugins import know_all

    for name, part in (kept or {}).items():
        if not Path(part.file).is_file():
            print(f"{part.file} is not there any more: {name} is taken as it was")
        elif Path(part.file).read_text() != part.source:
            print(f"{part.file} has changed since: {name} is taken as it is now")
    try:
        know_all(shape, kept)
    except (ValueError, TypeError) as error:
        raise CommandFailed(str(error)) from error


def _replay_schedule(path: Path) -> int:
    """Run a saved schedule again. 0: it shows what it showed; 1: something else; 2: it does not fit this code."""
    from pawl.actors.simulation.choice import Diverged
    from pawl.commands.explore_subject import replay as replay_subject
    from pawl.testing import load_schedule, replay_schedule
    from pawl.testing.subject.exploring import load_found

    try:
        found = load_found(path)
        if found is not None:
            return replay_subject(found)
        schedule = load_schedule(path)
    except ValueError as error:
        raise CommandFailed(f"{path} holds no schedule and no scenario: {error}") from error
    _load_own(schedule.workload.shape, schedule.parts)
    deviations = schedule.choices.deviations()
    print(f"{len(schedule.workload.arrivals)} requests, {len(schedule.choices)} decisions, {len(deviations)} not fair:")
    for at, _, label in deviations:
        print(f"  decision {at}: {label}")
    try:
        shown = replay_schedule(schedule)
    except Diverged as difference:
        print(f"DIVERGED: {difference}", file=sys.stderr)
        return 2
    if shown is None:
        print("no property failed")
    else:
        print(printable(f"{type(shown).__name__}: {shown}"))
    return int(str(shown or "") != schedule.error)


def _show(scenario: Scenario, path: Path) -> int:
    """Explore a scenario until what was recorded shows. 0: it does, or nothing was wrong and nothing is."""
    from pawl.logs import progress
    from pawl.testing.scenario import show

    _load_own(scenario.workload.shape)
    print(printable(f"{len(scenario.workload.arrivals)} requests of a recorded run ({scenario.recorded_model})"))
    if scenario.property is not None:
        print(printable(f"recorded  {scenario.property}: {scenario.explanation}"))
    with progress("schedules", SCENARIO_SCHEDULES) as advance:
        shown = show(scenario, SCENARIO_SCHEDULES, begins=lambda: advance(1))
    for other in dict.fromkeys(shown.others):
        print(printable(f"also      {other}"))
    if shown.found is None:
        print(f"simulated {shown.schedules} schedules, and it did not show")
        return int(scenario.property is not None)
    print(f"simulated {shown.found.failure.error}")
    print(f"          in schedule {shown.schedules}; to have it made smaller: pawl explore --workload {path}")
    return int(scenario.property is None)
