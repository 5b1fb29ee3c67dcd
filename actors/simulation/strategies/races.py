"""Which events of a run raced, and what would have to happen earlier to see the other outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pawl.actors.simulation.choice import Footprint


class Happened(NamedTuple):
    """One event of a run."""

    owner: str
    footprint: Footprint


class Race(NamedTuple):
    """Two events whose order was not settled by what came before them."""

    earlier: int
    """Place of the first one in the run."""
    first_owners: frozenset[str]
    """Owners of which one must go on at that place, so that the second comes first."""


class Order:
    """Happens-before of a run: the bits of `before[j]` are the places of all events that event j depends on, by itself
    or through others."""

    def __init__(self, run: Sequence[Happened]) -> None:
        self.before: list[int] = []
        self.direct: list[tuple[int, ...]] = []
        """For each event those that it depends on by itself and through no other."""
        last: dict[str, int] = {}
        last_everything: int | None = None
        for place, (_, footprint) in enumerate(run):
            if footprint.everything:
                found = set(range(place))
                last_everything = place
            else:
                found = {last[name] for name in footprint.targets if name in last}
                if last_everything is not None:
                    found.add(last_everything)
            for name in footprint.targets:
                last[name] = place
            behind = 0
            for other in found:
                behind |= self.before[other]
            self.direct.append(tuple(sorted(other for other in found if not behind >> other & 1)))
            self.before.append(behind | sum(1 << other for other in found))

    def depends(self, later: int, earlier: int) -> bool:
        return bool(self.before[later] >> earlier & 1)

    def first_of(self, places: Sequence[int]) -> list[int]:
        """Those of the events that depend on none of the others."""
        mask = sum(1 << place for place in places)
        return [place for place in places if not self.before[place] & mask]


def races(run: Sequence[Happened], since: int) -> Iterator[Race]:
    """All races whose later event is at `since` or behind.

    An event that another one has made possible (a message and the handler that sent it) does not race with it.
    """
    order = Order(run)
    for later in range(since, len(run)):
        for earlier in order.direct[later]:
            if run[earlier].owner == run[later].owner or run[earlier].footprint.independent(run[later].footprint):
                continue
            between = [place for place in range(earlier + 1, later) if not order.depends(place, earlier)]
            owners = frozenset(run[place].owner for place in order.first_of([*between, later]))
            yield Race(earlier, owners)
