"""`python -m tests.mutants.table`: hunt every mutant with the user's command; writes docs/mutants.md.

A hunt is `pawl explore` with its default flags, in one process. At most 5 minutes for each mutant that nothing finds,
and few seconds for most: hours in two processes. `--hunts all --seconds 15` is the default command alone, a quarter of
an hour.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import msgspec

from pawl.actors.simulation.choice import Diverged
from pawl.actors.simulation.exploration import ActorFailed, explore
from pawl.testing import STRATEGIES, PropertyFailed, replay_schedule
from pawl.testing.exploring import Schedule, scenario_of
from tests.mutants.everything import EQUIVALENT, MUTANTS
from tests.mutants.hunting import hunt
from tests.mutants.mutant import Group, Mutant, forget, planted

STRATEGY_SECONDS = 20.0
"""For each strategy by itself."""
BUDGETS = {"all": 120.0} | dict.fromkeys(("fair", "random", "pct", "pos", "coverage"), STRATEGY_SECONDS)
"""Strategy on the command line -> seconds of one process. Exhaustive search gets the smallest workload that they
found."""
EXHAUSTIVE = "exhaustive"
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


def measure(budgets: Mapping[str, float], exhaustive: int, name: str) -> Row:
    """Hunt one mutant; `exhaustive`: schedules for the smallest workload."""
    mutant = next(mutant for mutant in MUTANTS if mutant.name == name)
    forget()
    hunts = {strategy: hunt(mutant, strategy, seconds) for strategy, seconds in budgets.items()}
    hits = {
        strategy: each for strategy, each in hunts.items() if each.found is not None and _is_sound(name, each.found)
    }
    row = Row(name, {strategy: (each.schedules, round(each.seconds, 1)) for strategy, each in hits.items()})
    return _with_smallest(mutant, row, next(iter(hits.values())).found, exhaustive) if hits else row


def _is_sound(name: str, found: Schedule) -> bool:
    """Whether what shows the defect passes without it: else it shows something else, which is said."""
    forget()
    try:
        shown = replay_schedule(found)
    except Diverged:
        return True  # without the defect it went another way
    if shown is not None:
        print(f"{name}: the engine itself fails: {shown}; {found.workload.encode()}", flush=True)
    return shown is None


def _with_smallest(mutant: Mutant, row: Row, smallest: Schedule | None, exhaustive: int) -> Row:
    """The row with what is known of the smallest example."""
    assert smallest is not None
    with planted(mutant):
        shown = replay_schedule(smallest)
        scenario = scenario_of(smallest.workload, smallest.faults)
        search = explore(scenario, STRATEGIES[EXHAUSTIVE](0), exhaustive, most_shrink_runs=0)
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


def page(rows: Mapping[str, Row], budgets: Mapping[str, float], exhaustive: int, processes: int) -> Iterator[str]:
    """docs/mutants.md."""
    yield from _introduction(rows, budgets, exhaustive, processes)
    hunts = [*budgets, *[EXHAUSTIVE] * (exhaustive > 0)]
    for group in Group:
        yield ""
        yield f"## {group}"
        yield ""
        yield "| defect | breaks | like | " + " | ".join(hunts) + " | smallest | shown by |"
        yield "| --- | --- | --- |" + " ---: |" * len(hunts) + " --- | --- |"
        for mutant in MUTANTS:
            if mutant.group is group:
                yield _line(mutant, rows[mutant.name], hunts)
    yield ""
    yield "## Edits that are no defects"
    yield ""
    yield "These were tried as well, and nothing was found. We think that nothing is there to find:"
    yield ""
    for name, reason in EQUIVALENT.items():
        yield f"- `{name}`: {reason}"


def _introduction(
    rows: Mapping[str, Row], budgets: Mapping[str, float], exhaustive: int, processes: int
) -> Iterator[str]:
    yield "# Mutants"
    yield ""
    yield "<!-- Written by `make mutants`; do not edit. -->"
    yield ""
    seconds = ", ".join(f"*{strategy}* {budget:g} s" for strategy, budget in budgets.items())
    text = f"""\
Each line is a defect of a kind that public engines have had, rebuilt in Pawl by a small edit of its source
(`tests/mutants/`), and hunted with the user's command: `pawl explore --workers 1 --seed 0` with its default flags,
which fix neither the server nor what may fail, for so long, shrinking included: {seconds}. *All* is the default,
strategies in turns. {processes} such processes ran side by side. A cell is the number of schedules until a property
failed, and the seconds that took; - is not found. *Smallest* is what is left after shrinking: requests, and decisions
of the schedule that are not the fair ones. *Like* names issues of sglang, or of the engine that is given. What an actor
*raised* was noticed by a check that is on in production, too. What is not found here has a workload and a strategy that
show it (`tests/mutants/found`), and every test run tries those."""
    if exhaustive:
        text += f" *Exhaustive* searches the smallest workload for up to {exhaustive} schedules."
    yield from text.splitlines()
    yield ""
    yield "| | " + " | ".join(budgets) + " |"
    yield "| --- |" + " ---: |" * len(budgets)
    counts = [sum(strategy in row.hits for row in rows.values()) for strategy in budgets]
    yield f"| found of {len(rows)} | " + " | ".join(str(count) for count in counts) + " |"
    medians = [_median(rows, strategy) for strategy in budgets]
    yield "| median schedules | " + " | ".join(medians) + " |"


def _median(rows: Mapping[str, Row], strategy: str) -> str:
    numbers = sorted(row.hits[strategy][0] for row in rows.values() if strategy in row.hits)
    return str(numbers[len(numbers) // 2]) if numbers else "-"


def _line(mutant: Mutant, row: Row, hunts: Sequence[str]) -> str:
    cells = [_cell(row, strategy) for strategy in hunts]
    smallest = f"{row.num_requests} requests, {row.num_deviations} deviations" if row.hits else "-"
    facts = [f"`{mutant.name}`: {mutant.what}", f"`{mutant.property}`", mutant.resembles, *cells]
    return "| " + " | ".join([*facts, smallest, row.named_by]) + " |"


def _cell(row: Row, strategy: str) -> str:
    if strategy == EXHAUSTIVE:
        return "-" if row.exhaustive is None else str(row.exhaustive)
    hit = row.hits.get(strategy)
    return "-" if hit is None else f"{hit[0]} ({hit[1]:.1f} s)"


def main() -> None:
    """Hunt, and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--hunts", nargs="+", choices=[*BUDGETS, EXHAUSTIVE], default=[*BUDGETS, EXHAUSTIVE])
    parser.add_argument("--seconds", type=float, help="of each hunt; without it 120 of all strategies, 20 of one")
    arguments = parser.parse_args()
    budgets = {name: arguments.seconds or BUDGETS[name] for name in arguments.hunts if name in BUDGETS}
    exhaustive = EXHAUSTIVE_BUDGET if EXHAUSTIVE in arguments.hunts else 0
    rows: dict[str, Row] = {}
    with ProcessPoolExecutor(arguments.processes) as pool:
        for row in pool.map(partial(measure, budgets, exhaustive), [mutant.name for mutant in MUTANTS]):
            rows[row.name] = row
            print(row.name, {name: hit[0] for name, hit in row.hits.items()}, flush=True)
    written = "\n".join(page(rows, budgets, exhaustive, arguments.processes)) + "\n"
    (ROOT / "docs" / "mutants.md").write_text(written)


if __name__ == "__main__":
    main()
