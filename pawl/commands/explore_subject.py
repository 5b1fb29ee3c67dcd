"""`pawl explore --subject NAME`: a scheduler that is not ours, under as many schedules as the time allows; and the
replay of what that has found."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import NamedTuple

from pawl.actors.simulation.choice import Diverged
from pawl.commands.failures import CommandFailed, UsageError
from pawl.exploration import ANY
from pawl.exploration.processes import Clock
from pawl.logs import progress
from pawl.testing.subject.exploring import Found, Saved, replay_found
from pawl.testing.subject.registry import load_subject
from pawl.testing.subject.search import report, search
from pawl.testing.subject.telling import lines_of, script_of


def run(arguments: argparse.Namespace, seed: int) -> int:
    """Explore the subject; print the table and the counterexamples, and write a file and a script for each."""
    _refuse_flags_of_ours(arguments)
    try:
        kind = load_subject(arguments.subject)
    except ValueError as error:
        raise UsageError(str(error)) from error
    began = time.monotonic()
    ends: float = began + arguments.seconds

    def told(found: Found) -> None:
        path = _file_of(found, arguments.output)
        found.save(path)
        print(f"found, and saved to {path}: {str(found.error).splitlines()[0]}", file=sys.stderr, flush=True)

    with progress("seconds", max(1, int(arguments.seconds))) as advance:
        clock = Clock(advance)

        def over() -> bool:
            clock.tick()
            return time.monotonic() >= ends

        done = search(
            kind,
            arguments.subject,
            seed=seed,
            strategy=arguments.strategy,
            schedules=arguments.schedules,
            max_requests=arguments.max_requests,
            shrink_seconds=arguments.shrink_seconds,
            over=over,
            told=told,
        )
    saved = {name: _save(found, arguments.output) for name, found in done.found.items()}
    if arguments.json:
        facts = done.as_dict() | {"files": {name: [str(path) for path in each.paths] for name, each in saved.items()}}
        print(json.dumps(facts, indent=1))
        return int(done.failed)
    print("\n".join(report(done, time.monotonic() - began)))
    for name, found in done.found.items():
        print(f"\n{found}\n\nsaved; to see it again: pawl replay {saved[name].paths[0]}\n{saved[name].script}")
    return int(done.failed)


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
