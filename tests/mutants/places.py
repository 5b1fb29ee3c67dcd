"""Where the tests look for each mutant: a workload, its faults, and who decides the schedule, in a file each.

Files and no seeds, so that what is drawn may change. `python -m tests.mutants.places [NAME …]` looks for mutants that
have no place, or are not caught there any more, with the user's command.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import msgspec

from pawl.actors.simulation.faults import Faults
from pawl.exploration.task import EXPLORED
from pawl.testing import Workload, explore_workload
from pawl.testing.exploring import Outcome
from tests.mutants.everything import MUTANTS
from tests.mutants.hunting import hunt
from tests.mutants.mutant import Mutant, forget, planted

FOLDER = Path(__file__).with_name("found")
SCHEDULES = 60
"""In which a mutant is caught where it was found, if a change of the engine has moved it a little."""
SEEDS = 12
"""Of each strategy, tried in the workload that showed it before."""
SECONDS = 240.0
"""In which one is looked for."""


class Place(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a mutant is caught."""

    strategy: str
    seed: int
    """Of the strategy."""
    workload: Workload
    faults: Faults = Faults()

    def explored(self, schedules: int = SCHEDULES) -> Outcome:
        """What so many schedules come to, with the code as it is at the moment."""
        return explore_workload(
            self.workload, self.strategy, schedules, seed=self.seed, faults=self.faults, shrink=False
        )


def place_of(name: str) -> Place:
    """The place of a mutant. Raises OSError where it has none."""
    return msgspec.json.decode((FOLDER / f"{name}.json").read_bytes(), type=Place)


def catches(place: Place, mutant: Mutant) -> bool:
    """Whether the mutant is caught there, and the code as it is passes."""
    with planted(mutant):
        caught = place.explored().found is not None
    forget()
    return caught and place.explored().found is None


def looked_for(mutant: Mutant) -> bool:
    """Keep the mutant's place if it has one, else look for one: in the same workload, and then anywhere."""
    path = FOLDER / f"{mutant.name}.json"
    for place in _candidates(mutant, path):
        if catches(place, mutant):
            path.write_bytes(msgspec.json.encode(place) + b"\n")
            return True
    return False


def _candidates(mutant: Mutant, path: Path) -> Iterator[Place]:
    if path.exists():
        place = place_of(mutant.name)
        yield place
        for strategy, seed in product(EXPLORED, range(SEEDS)):
            yield msgspec.structs.replace(place, strategy=strategy, seed=seed)
    found = hunt(mutant, "all", SECONDS).found
    if found is not None:
        yield Place(found.strategy, found.seed, found.workload, found.faults)


def main() -> None:
    """Look for those that are named, or for all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    names = parser.parse_args().names
    for mutant in MUTANTS:
        if not names or mutant.name in names:
            print(mutant.name, "has a place" if looked_for(mutant) else "was NOT FOUND", flush=True)


if __name__ == "__main__":
    main()
