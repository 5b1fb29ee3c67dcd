"""`pawl audit TRACE`: 0 PASS, 1 VIOLATION, 2 INCOMPLETE, 3 CORRUPT."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from pawl.commands.failures import CommandFailed
from pawl.config import ServerConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The trace, and how to report."""
    parser.add_argument(
        "trace",
        nargs="?",
        type=Path,
        metavar="TRACE",
        help="the folder of one run, or one trace file; without it the newest run in the default folder",
    )
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    parser.epilog = "exit status: 0 PASS, 1 VIOLATION, 2 INCOMPLETE, 3 CORRUPT"


def run(arguments: argparse.Namespace) -> int:
    """Check the trace, print the report; returns the verdict's number."""
    from lifecycle.audit import audit

    trace = arguments.trace or newest_run(Path(ServerConfig().trace_dir))
    if not trace.exists():
        raise CommandFailed(f"{trace}: there is no trace here")
    report = audit(trace)
    if arguments.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report.as_dict()).decode(), indent=1) + "\n")
    else:
        print(report.as_text())
    return int(report.verdict)


def newest_run(folder: Path) -> Path:
    """The folder of the run that was written to last. Raises CommandFailed where there is none."""
    runs = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    if not runs:
        raise CommandFailed(f"{folder} holds no trace; name one: pawl audit TRACE")
    return max(runs, key=lambda path: path.stat().st_mtime)
