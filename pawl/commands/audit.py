"""`pawl audit TRACE`: 0 PASS, 1 VIOLATION, 2 INCOMPLETE, 3 CORRUPT; 4 when there is none."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from pawl.commands.failures import NoTrace
from pawl.commands.trace import add_trace
from pawl.config import ServerConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The trace, and how to report."""
    add_trace(parser)
    parser.add_argument(
        "--replay",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also make every decision again from the recorded inputs; takes about as long as the rest (default: on)",
    )
    parser.add_argument("--json", action="store_true", help="the report as one JSON object")
    parser.epilog = "exit status: 0 PASS, 1 VIOLATION, 2 INCOMPLETE, 3 CORRUPT; 4 there is no trace to read"


def run(arguments: argparse.Namespace) -> int:
    """Check the trace, print the report; returns the verdict's number."""
    from pawl.lifecycle.audit import audit
    from pawl.loops.decision_log import OneDecisionLog

    decisions = OneDecisionLog()
    try:
        report = audit(arguments.trace or Path(ServerConfig().trace_dir), [decisions] if arguments.replay else [])
    except OSError as error:
        raise NoTrace(str(error)) from error
    if arguments.json:
        facts = report.as_dict() | {"not_replayed": decisions.reason if arguments.replay else "not asked for"}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(facts).decode(), indent=1) + "\n")
    else:
        print(report.text())
        if decisions.reason:
            print(f"  not replayed to the end: {decisions.reason}")
    return int(report.verdict)
