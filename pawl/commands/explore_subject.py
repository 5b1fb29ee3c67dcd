"""`pawl explore --subject NAME`: a scheduler that is not ours, under as many schedules as the time allows; and the
replay of what that has found."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from pawl.actors.simulation.choice import Diverged
from pawl.commands.failures import CommandFailed, UsageError
from pawl.exploration import ANY
from pawl.exploration.processes import SCHEDULES_OF_FEWER, UNSAVED, Clock
from pawl.exploration.watched import GRACE_S, Tell, Watched, follow
from pawl.logs import progress
from pawl.testing.subject.exploring import Found, Saved, replay_found
from pawl.testing.subject.registry import load_subject
from pawl.testing.subject.search import report, search
from pawl.testing.subject.telling import lines_of, script_of

A_REQUEST = "\n  request "
"""Begins the line of one, where it is noted what a run is made of."""


def run(arguments: argparse.Namespace, seed: int) -> int:
    """Explore the subject; print the table and the counterexamples, and write a file and a script for each."""
    _refuse_flags_of_ours(arguments)
    process = Watched(partial(_explore, arguments, seed))
    with progress("seconds", max(1, int(arguments.seconds))) as advance:
        said = _follow(process, Clock(advance).tick)
    if process.lost:
        print(f"found: {_property(process)}: {process.lost.splitlines()[0]}", file=sys.stderr, flush=True)
        _tell_lost(_with_fewer(process, arguments, seed), arguments)
        return 1
    if "refused" in said:
        raise UsageError(said["refused"])
    if "told" not in said:
        raise CommandFailed("the process that explores failed; what it said is above")
    print(said["told"])
    return int(said["failed"])


def _follow(process: Watched, tick: Callable[[], None]) -> dict[str, Any]:
    """What the process told last, which has ended."""
    said: dict[str, Any] = {}
    try:
        for said in follow(process, tick):
            if "found" in said:
                print(said["found"], file=sys.stderr, flush=True)
    finally:
        process.end(GRACE_S if "told" in said else 0.0)
    return said


def _property(process: Watched) -> str:
    return "returns" if process.hung else "raises_nothing"


def _with_fewer(process: Watched, arguments: argparse.Namespace, seed: int) -> Watched:
    """A process that was lost with the same call in a run of fewer requests, if there is one."""
    ends = time.monotonic() + arguments.shrink_seconds
    for most in range(1, process.noted.count(A_REQUEST)):
        if time.monotonic() >= ends:
            break
        few = {"max_requests": most, "schedules": SCHEDULES_OF_FEWER, "seconds": arguments.shrink_seconds}
        again = Watched(partial(_explore, argparse.Namespace(**vars(arguments) | few), seed))
        _follow(again, lambda: None)
        if again.lost.splitlines()[:1] == process.lost.splitlines()[:1]:
            return again
    return process


def _tell_lost(process: Watched, arguments: argparse.Namespace) -> None:
    """Nothing is left of a process that was lost but what was noted: the run is not saved."""
    name = _property(process)
    text = f"{name}: {process.lost}{process.noted}"
    if arguments.json:
        facts = {"subject": arguments.subject, "violations": {name: 1}, "counterexamples": {name: text}}
        print(json.dumps(facts, indent=1))
        return
    print(f"{text}\n\nviolations: 1 properties\n{UNSAVED}")


def _explore(arguments: argparse.Namespace, seed: int, tell: Tell) -> None:
    """In a process of its own: whatever a subject is imports and does stays there."""
    try:
        kind = load_subject(arguments.subject)
    except ValueError as error:
        tell({"refused": str(error)})
        return
    began = time.monotonic()
    ends: float = began + arguments.seconds

    def found_one(found: Found) -> None:
        path = _file_of(found, arguments.output)
        found.save(path)
        tell({"found": f"found, and saved to {path}: {str(found.error).splitlines()[0]}"})

    done = search(
        kind,
        arguments.subject,
        seed=seed,
        strategy=arguments.strategy,
        schedules=arguments.schedules,
        max_requests=arguments.max_requests,
        shrink_seconds=arguments.shrink_seconds,
        over=lambda: time.monotonic() >= ends,
        told=found_one,
    )
    saved = {name: _save(found, arguments.output) for name, found in done.found.items()}
    if arguments.json:
        facts = done.as_dict() | {"files": {name: [str(path) for path in each.paths] for name, each in saved.items()}}
        lines = [json.dumps(facts, indent=1)]
    else:
        lines = report(done, time.monotonic() - began)
        for name, found in done.found.items():
            again = f"saved; to see it again: pawl replay {saved[name].paths[0]}\n{saved[name].script}"
            lines.append(f"\n{found}\n\n{again}")
    tell({"told": "\n".join(lines), "failed": done.failed})


def _refuse_flags_of_ours(arguments: argparse.Namespace) -> None:
    """Flags that say how our own engine is made mean nothing here."""
    from pawl.exploration.fixed import flag_of, given

    fixed, of_requests = given(arguments)
    meant = [flag_of(name) for name in (fixed | of_requests)]
    meant += [f"--{name}" for name in ("policy", "cache") if getattr(arguments, name) != ANY]
    meant += [f"--{name}" for name in ("scheduler", "workload") if getattr(arguments, name)]
    meant += ["--cell"] if arguments.cell != "all" else []
    meant += [f"--{name}" for name in ("workers", "faults") if getattr(arguments, name) is not None]
    if meant:
        raise UsageError(f"{', '.join(meant)}: not with --subject, which says itself how it is made")


def _file_of(found: Found, output: Path) -> Path:
    return output.with_name(f"{output.stem}-{found.violated}.json")


class _Saved(NamedTuple):
    """A counterexample in files."""

    paths: list[Path]
    """For `pawl replay`, and the script if there is one."""
    script: str
    """How it is run, or why there is none."""


def _save(found: Found, output: Path) -> _Saved:
    """In a file, and as a script where the adapter says how its calls are written."""
    path = _file_of(found, output)
    found.save(path)
    try:
        script = script_of(found.kind, found.run().subject.calls, str(found.error))
    except (Diverged, ValueError) as error:
        return _Saved([path], f"no script: {error}")
    if script is None:
        return _Saved([path], "no script: its adapter has no `script_of`")
    program = path.with_suffix(".py")
    program.write_text(script)
    return _Saved([path, program], f"without Pawl: python {program}")


def replay(saved: Saved) -> int:
    """Run a counterexample again. 0: it shows what it showed; 1: something else; 2: the subject decides otherwise."""
    try:
        again, shown = replay_found(saved)
    except Diverged as difference:
        print(f"DIVERGED: {difference}", file=sys.stderr)
        return 2
    except ValueError as error:
        raise CommandFailed(str(error)) from error
    print("\n".join(lines_of(again.subject.calls)))
    print("no property failed" if shown is None else str(shown))
    return int(_first_line(shown) != _first_line(saved.error))


def _first_line(told: object) -> str:
    return next(iter(str(told or "").splitlines()), "")
