"""`python -m tests.mutants.table`: hunt every mutant with the user's command; writes docs/mutants.md.

A hunt is `pawl explore` with its default flags, in one process. At most 5 minutes for each mutant that nothing finds,
and few seconds for most: a quarter of an hour in two processes, on a quiet machine.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from pawl.actors.simulation.exploration import ActorFailed, explore
from pawl.testing import STRATEGIES, PropertyFailed, replay_schedule
from pawl.testing.exploring import Schedule, scenario_of
from tests.mutants.everything import EQUIVALENT, MUTANTS
from tests.mutants.hunting import Hunt, hunt
from tests.mutants.mutant import Group, Mutant, planted

STRATEGY_SECONDS = 20.0
"""For each strategy by itself."""
BUDGETS = {"all": 120.0} | dict.fromkeys(("fair", "random", "pct", "pos", "coverage"), STRATEGY_SECONDS)
"""Strategy on the command line -> seconds of one process. Exhaustive search gets the smallest workload that they
found."""
EXHAUSTIVE_BUDGET = 150
ROOT = Path(__file__).parents[2]


class Row(msgspec.Struct, frozen=True):
    """All that is known about one mutant."""

    name: str
    hits: dict[str, tuple[int, float]]
    """By strategy: schedules and seconds until then; those that found nothing are left out."""
    exhaustive: int | None = None
    """Schedules until exhaustive search found it in the smallest workload."""
    num_requests: int = 0
    num_deviations: int = 0
    """After shrinking."""
    named_by: str = ""


def measure(name: str) -> Row:
    """Hunt one mutant."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    hunts = {strategy: hunt(mutant, strategy, seconds) for strategy, seconds in BUDGETS.items()}
    hits = {strategy: each for strategy, each in hunts.items() if each.found is not None}
    for each in hits.values():
        _require_sound(each)
    row = Row(name, {strategy: (each.schedules, round(each.seconds, 1)) for strategy, each in hits.items()})
    return _with_smallest(mutant, row, next(iter(hits.values())).found) if hits else row


def _require_sound(found: Hunt) -> None:
    """What shows the defect must pass without it: else it shows something else. Raises AssertionError."""
    assert found.found is not None
    shown = replay_schedule(found.found)
    if shown is not None:
        raise AssertionError(f"the engine itself fails: {shown}; {found.found.workload.encode()}")


def _with_smallest(mutant: Mutant, row: Row, smallest: Schedule | None) -> Row:
    """The row with what is known of the smallest example."""
    assert smallest is not None
    with planted(mutant):
        shown = replay_schedule(smallest)
        scenario = scenario_of(smallest.workload, smallest.faults)
        search = explore(scenario, STRATEGIES["exhaustive"](0), EXHAUSTIVE_BUDGET, most_shrink_runs=0)
    return msgspec.structs.replace(
        row,
        exhaustive=search.failure.schedule if search.failure is not None else None,
        num_requests=len(smallest.workload.arrivals),
        num_deviations=len(smallest.choices.deviations()),
        named_by=name_of(shown),
    )


def name_of(error: BaseException | None) -> str:
    """The property that an error names; for what an actor raised, its class."""
    if isinstance(error, PropertyFailed):
        return error.property
    if isinstance(error, ActorFailed):
        return f"raised: {type(error.error).__name__}"
    return type(error).__name__


# ---- the page ----


def page(rows: dict[str, Row]) -> Iterator[str]:
    """docs/mutants.md."""
    yield from _introduction(rows)
    for group in Group:
        yield ""
        yield f"## {group}"
        yield ""
        yield "| defect | breaks | like | " + " | ".join(BUDGETS) + " | exhaustive | smallest | shown by |"
        yield "| --- | --- | --- |" + " ---: |" * (len(BUDGETS) + 1) + " --- | --- |"
        for mutant in MUTANTS:
            if mutant.group is group:
                yield _line(mutant, rows[mutant.name])
    yield ""
    yield "## Edits that are no defects"
    yield ""
    yield "These were tried as well, and nothing was found. We think that nothing is there to find:"
    yield ""
    for name, reason in EQUIVALENT.items():
        yield f"- `{name}`: {reason}"


def _introduction(rows: dict[str, Row]) -> Iterator[str]:
    yield "# Mutants"
    yield ""
    yield "<!-- Written by `make mutants`; do not edit. -->"
    yield ""
    text = f"""\
Each line is a defect of a kind that public engines have had, rebuilt in Pawl by a small edit of its source
(`tests/mutants/`), and hunted with the user's command: `pawl explore --workers 1 --seed 0` with its default flags,
which fix neither the server nor what may fail. *all* is the default, strategies in turns, for {BUDGETS["all"]:g} s;
each strategy by itself has {STRATEGY_SECONDS:g} s; two such processes ran side by side on two cores. A cell is the
number of schedules until a property failed, and the seconds that took; - is not found. *Smallest* is what is left
after shrinking: requests, and decisions of the schedule that are not the fair ones. *Exhaustive* searches that smallest
workload for up to {EXHAUSTIVE_BUDGET} schedules. *Like* names issues of sglang, or of the engine that is given. What an
actor *raised* was noticed by a check that is on in production, too."""
    yield from text.splitlines()
    yield ""
    yield "| | " + " | ".join(BUDGETS) + " |"
    yield "| --- |" + " ---: |" * len(BUDGETS)
    counts = [sum(strategy in row.hits for row in rows.values()) for strategy in BUDGETS]
    yield f"| found of {len(rows)} | " + " | ".join(str(count) for count in counts) + " |"
    medians = [_median(rows, strategy) for strategy in BUDGETS]
    yield "| median schedules | " + " | ".join(medians) + " |"


def _median(rows: dict[str, Row], strategy: str) -> str:
    numbers = sorted(row.hits[strategy][0] for row in rows.values() if strategy in row.hits)
    return str(numbers[len(numbers) // 2]) if numbers else "-"


def _line(mutant: Mutant, row: Row) -> str:
    cells = [
        f"{hit[0]} ({hit[1]:.1f} s)" if (hit := row.hits.get(strategy)) is not None else "-" for strategy in BUDGETS
    ]
    exhaustive = "-" if row.exhaustive is None else str(row.exhaustive)
    smallest = f"{row.num_requests} requests, {row.num_deviations} deviations" if row.hits else "-"
    facts = [f"`{mutant.name}`: {mutant.what}", f"`{mutant.property}`", mutant.resembles, *cells]
    return "| " + " | ".join([*facts, exhaustive, smallest, row.named_by]) + " |"


def main() -> None:
    """Hunt, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    names = [mutant.name for mutant in MUTANTS]
    rows: dict[str, Row] = {}
    with ProcessPoolExecutor(arguments.processes) as pool:
        for row in pool.map(measure, names):
            rows[row.name] = row
            print(row.name, {name: hit[0] for name, hit in row.hits.items()}, flush=True)
    (ROOT / "docs" / "mutants.md").write_text("\n".join(page(rows)) + "\n")


if __name__ == "__main__":
    main()
