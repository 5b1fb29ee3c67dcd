"""`pawl doctor`: what works on this machine. 0 when nothing keeps a server from working, 1 otherwise."""

from __future__ import annotations

import argparse
import sys

import msgspec

from pawl.commands.settings import SHOWN_OF_A_MACHINE, prepared
from pawl.doctor import Finding, Level, examine
from pawl.flags import add_flags

MARKS = {Level.OK: "ok     ", Level.WARNING: "warning", Level.PROBLEM: "PROBLEM"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The settings to look at the machine with: those a server would get."""
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    add_flags(parser, shown=SHOWN_OF_A_MACHINE)


def run(arguments: argparse.Namespace) -> int:
    """Print each finding as soon as it is there."""
    levels = []
    for finding in examine(prepared(arguments, quiet=True)):
        levels.append(finding.level)
        print(msgspec.json.encode(finding).decode() if arguments.json else line(finding), flush=True)
    problems, warnings = levels.count(Level.PROBLEM), levels.count(Level.WARNING)
    print(f"{problems} problems, {warnings} warnings", file=sys.stderr)
    return 1 if problems else 0


def line(finding: Finding) -> str:
    """One finding for a person."""
    text = f"{MARKS[finding.level]}  {finding.subject:<11} {finding.detail}"
    return f"{text}\n{'':21}→ {finding.advice}" if finding.advice else text
