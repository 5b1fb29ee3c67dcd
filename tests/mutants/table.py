"""`python -m tests.mutants.table`: hunt every mutant with every strategy; writes docs/mutants.md and found.json.

Takes some minutes. `found.json` tells the tests where to look, so that they need not.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from pawl.actors.simulation.exploration import explore
from pawl.actors.simulation.shrinking import cost
from pawl.testing import STRATEGIES, explore_workload
from pawl.testing.exploring import scenario_of, shrunk
from tests.mutants.everything import EQUIVALENT, MUTANTS
from tests.mutants.hunting import SCHEDULES_OF_EACH, explore_stream, hunt, name_of
from tests.mutants.mutant import Group, Mutant, planted

RANDOMIZED = ("fair", "random", "pct", "pos", "coverage")
"""Strategies that hunt over a stream of workloads. Exhaustive search gets the smallest workload that they found."""
BUDGET = 400
"""Schedules of one hunt."""
EXHAUSTIVE_BUDGET = 150
SHRINKING_SCHEDULES = 8
"""Of each smaller workload that is tried."""
ROOT = Path(__file__).parents[2]
FOUND = Path(__file__).with_name("found.json")


class Hit(msgspec.Struct, frozen=True):
    """Where a strategy found a mutant."""

    schedules: int
    seconds: float
    seed: int


class Row(msgspec.Struct, frozen=True):
    """All that is known about one mutant."""

    name: str
    hits: dict[str, Hit]
    """By strategy; those that found nothing are left out."""
    exhaustive: int | None = None
    """Schedules until exhaustive search found it in the smallest workload."""
    num_requests: int = 0
    num_deviations: int = 0
    """After shrinking."""
    named_by: str = ""


class Place(msgspec.Struct, frozen=True):
    """Where a test looks for a mutant."""

    strategy: str
    seed: int


def measure(name: str) -> Row:
    """Hunt one mutant."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    hits: dict[str, Hit] = {}
    for strategy in RANDOMIZED:
        result = hunt(mutant, strategy, BUDGET)
        if result.found is not None:
            _require_sound(mutant, strategy, result.seed)
            hits[strategy] = Hit(result.schedules, round(result.seconds, 2), result.seed)
    return _shrunken(mutant, hits) if hits else Row(name, hits)


def _require_sound(mutant: Mutant, strategy: str, seed: int) -> None:
    """What shows the defect must pass without it: else it shows something else. Raises AssertionError."""
    sound = explore_stream(mutant, strategy, SCHEDULES_OF_EACH, first_seed=seed)
    if sound.found is not None:
        raise AssertionError(f"the engine itself fails on workload {seed}: {sound.found}")


def _shrunken(mutant: Mutant, hits: dict[str, Hit]) -> Row:
    """The row of a mutant that was found, with the size of its smallest example."""
    strategy = min(hits, key=lambda name: hits[name].schedules)
    seed = hits[strategy].seed
    with planted(mutant):
        workload = mutant.workload(seed)
        found = explore_workload(
            workload, strategy, SCHEDULES_OF_EACH, seed=seed, faults=mutant.faults, shrink=False
        ).found
        assert found is not None, "the same seed gives the same runs"
        found = shrunk(found, strategy, seed, schedules=SHRINKING_SCHEDULES)
        scenario = scenario_of(found.workload, mutant.faults)
        search = explore(scenario, STRATEGIES["exhaustive"](0), EXHAUSTIVE_BUDGET, most_shrink_runs=0)
    return Row(
        mutant.name,
        hits,
        exhaustive=search.failure.schedule if search.failure is not None else None,
        num_requests=len(found.workload.arrivals),
        num_deviations=cost(found.failure.shrunk)[0],
        named_by=name_of(found.failure.error),
    )


def best_place(row: Row) -> Place:
    """Where a test finds the mutant soonest."""
    strategy = min(row.hits, key=lambda name: (row.hits[name].schedules, name))
    return Place(strategy, row.hits[strategy].seed)


# ---- the page ----


def page(rows: dict[str, Row]) -> Iterator[str]:
    """docs/mutants.md."""
    yield from _introduction(rows)
    for group in Group:
        yield ""
        yield f"## {group}"
        yield ""
        yield "| defect | breaks | like | " + " | ".join(RANDOMIZED) + " | exhaustive | smallest | shown by |"
        yield "| --- | --- | --- |" + " ---: |" * (len(RANDOMIZED) + 1) + " --- | --- |"
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
(`tests/mutants/`), and hunted with simulated runs of the whole engine: random workloads with seeds 0, 1, 2, …,
{SCHEDULES_OF_EACH} schedules of each (fair has one), up to {BUDGET} schedules; on 2 cores. A cell is the number of
schedules until a property failed, and the seconds that took; - is not found. *Smallest* is what is left after
shrinking: requests, and decisions of the schedule that are not the fair ones. *Exhaustive* searches that smallest
workload for up to {EXHAUSTIVE_BUDGET} schedules. *Like* names issues of sglang, or of the engine that is given. What an
actor *raised* was noticed by a check that is on in production, too."""
    yield from text.splitlines()
    yield ""
    yield "Grammars, sessions, adapters and changes of weights have no mutants: the simulated engine has none of these."
    yield ""
    yield "| | " + " | ".join(RANDOMIZED) + " |"
    yield "| --- |" + " ---: |" * len(RANDOMIZED)
    counts = [sum(strategy in row.hits for row in rows.values()) for strategy in RANDOMIZED]
    yield f"| found of {len(rows)} | " + " | ".join(str(count) for count in counts) + " |"
    medians = [_median(rows, strategy) for strategy in RANDOMIZED]
    yield "| median schedules | " + " | ".join(medians) + " |"


def _median(rows: dict[str, Row], strategy: str) -> str:
    numbers = sorted(row.hits[strategy].schedules for row in rows.values() if strategy in row.hits)
    return str(numbers[len(numbers) // 2]) if numbers else "-"


def _line(mutant: Mutant, row: Row) -> str:
    cells = [
        f"{hit.schedules} ({hit.seconds:.1f} s)" if (hit := row.hits.get(strategy)) is not None else "-"
        for strategy in RANDOMIZED
    ]
    exhaustive = "-" if row.exhaustive is None else str(row.exhaustive)
    smallest = f"{row.num_requests} requests, {row.num_deviations} deviations"
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
            print(row.name, {name: hit.schedules for name, hit in row.hits.items()}, flush=True)
    (ROOT / "docs" / "mutants.md").write_text("\n".join(page(rows)) + "\n")
    places = {name: msgspec.to_builtins(best_place(row)) for name, row in rows.items() if row.hits}
    FOUND.write_text(msgspec.json.format(msgspec.json.encode(places), indent=2).decode() + "\n")


if __name__ == "__main__":
    main()
