"""Where the tests look for each mutant: a workload, its faults, and who decides the schedule, in a file each.

Files and no seeds, so that what is drawn may change. `python -m tests.mutants.places [NAME …]` looks for mutants that
have no place, or are not caught there any more, with the user's command.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from pawl.actors.simulation.faults import Faults
from pawl.testing import Workload, explore_workload
from pawl.testing.exploring import Outcome, Schedule
from tests.mutants.everything import MUTANTS
from tests.mutants.hunting import hunt
from tests.mutants.mutant import Mutant, planted

FOLDER = Path(__file__).with_name("found")
SCHEDULES = 60
"""In which a mutant is caught where it was found, if a change of the engine has moved it a little."""
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
    return caught and place.explored().found is None


def keep(mutant: Mutant, schedule: Schedule) -> bool:
    """Write down where the mutant was found, unless it is not caught there again."""
    place = Place(schedule.strategy, schedule.seed, schedule.workload, schedule.faults)
    if not catches(place, mutant):
        return False
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{mutant.name}.json").write_bytes(msgspec.json.encode(place) + b"\n")
    return True


def looked_for(mutant: Mutant) -> bool:
    """Keep the mutant's place if it has one, else look for one."""
    try:
        if catches(place_of(mutant.name), mutant):
            return True
    except OSError:
        pass
    found = hunt(mutant, "all", SECONDS).found
    return found is not None and keep(mutant, found)


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
