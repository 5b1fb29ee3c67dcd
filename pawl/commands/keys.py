"""`pawl keys DIR`: a key pair for links over tcp, which every process of a deployment is given."""

from __future__ import annotations

import argparse
from pathlib import Path

from pawl.actors.runtime.processes.keys import make_keys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """DIR."""
    parser.add_argument("folder", metavar="DIR", help="made if it is not there, for its owner alone")


def run(arguments: argparse.Namespace) -> int:
    """Make a pair; 0. Raises KeysUnusable where there is one already."""
    folder = Path(arguments.folder)
    make_keys(folder)
    print(f"{folder}: give these two files to every process that is to be let in, and to nobody else")
    return 0
