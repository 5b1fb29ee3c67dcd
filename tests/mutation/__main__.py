"""`python -m tests.mutation`: edit every function in every way, see what notices, and write docs/mutation.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest

from tests.mutation.edits import ROOMS
from tests.mutation.page import page
from tests.mutation.reach import EXPLORE, Measuring, Reach
from tests.mutation.sweep import ROOT, Hurry, Request, Results, Sweeping, exploration, import_rooms, unreached

TESTS = ("lifecycle", "memory", "loops", "actors", "pawl", "mutants")
"""Folders of tests that judge."""
MUTANTS_ARE_CAUGHT = "tests/mutants/test_mutants.py::test_a_mutant_is_caught"
"""With a mutant in the code an edit more hardly matters: 263 tests that would take the time of others."""
OPTIONS = (
    *("-s", "-q", "--assert=plain", "-p", "no:cacheprovider", "-m", "not slow and not gpu"),
    *("--deselect", MUTANTS_ARE_CAUGHT),
)
MEASURED_SCHEDULES = 400


def main() -> int:
    """Measure, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--room", action="append", choices=ROOMS, help="judge only edits of the sample in this one; may be given again"
    )
    parser.add_argument("--sample", type=int, default=150, metavar="N", help="edits of all rooms (default: 150)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the sample (default: 1)")
    parser.add_argument("--schedules", type=int, default=400, metavar="N", help="explored for each (default: 400)")
    parser.add_argument(
        "--test-seconds", type=float, default=600.0, metavar="X", help="of tests run for each (default: 600)"
    )
    parser.add_argument(
        "--processes", type=int, default=2, metavar="N", help="that judge beside each other (default: 2)"
    )
    parser.add_argument("--again", action="store_true", help="judge once more what survived so far")
    parser.add_argument("--measure", nargs="*", metavar="TEST", help="only measure which lines (these) tests reach")
    parser.add_argument("--unreached", action="store_true", help="only list statements that no test was seen to reach")
    parser.add_argument("--page", action="store_true", help="only write the page")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "mutation", help="of results")
    arguments = parser.parse_args()
    known, results = arguments.folder / "reach.msgpack", arguments.folder / "results.json"
    if not arguments.page:
        reach = Reach.load(known)
        if arguments.measure is not None or not reach.tests:
            _measure(reach, arguments.measure or [])
            reach.save(known)
        if arguments.unreached:
            print(*unreached(reach), sep="\n")
            return 0
        if arguments.measure is None:
            rooms = tuple(arguments.room or ROOMS)
            request = Request(
                rooms,
                arguments.sample,
                arguments.seed,
                arguments.schedules,
                arguments.test_seconds,
                arguments.again,
                arguments.processes,
                results,
            )
            _pytest([], Hurry(), Sweeping(request, reach))
    (ROOT / "docs" / "mutation.md").write_text("\n".join(page(Results.load(results))) + "\n")
    return 0


def _measure(reach: Reach, tests: list[str]) -> None:
    explore = None if tests and EXPLORE in reach.tests else exploration(MEASURED_SCHEDULES)
    _pytest(tests, Hurry(), Measuring(ROOT, reach, explore, import_rooms))


def _pytest(tests: list[str], *plugins: object) -> None:
    pytest.main([*OPTIONS, *(tests or [str(ROOT / "tests" / folder) for folder in TESTS])], plugins=plugins)


if __name__ == "__main__":
    sys.exit(main())
