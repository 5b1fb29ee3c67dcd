"""All schedules, depth first; of those that differ only in the order of independent events not all are run.

Two events are independent if they touch nothing in common (`Footprint`). An event touches the mailbox whose actor it
runs or into which a message arrives, those of the actors it may let go, and those in which it might use up the room.
Failures, ends, stops, dead letters, the clock, faults, values picked in a handler and messages from outside
touch everything. What actors share behind the runtime's back (a list in the test) is not seen.

P. Godefroid: Partial-Order Methods for the Verification of Concurrent Systems, LNCS 1032, 1996 (sleep sets).
P. Abdulla, S. Aronis, B. Jonsson, K. Sagonas: Optimal Dynamic Partial Order Reduction, POPL 2014 (source sets).
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from itertools import islice

from pawl.actors.simulation.choice import Choices, Footprint, Kind, Option
from pawl.actors.simulation.strategies.races import Happened, races
from pawl.actors.simulation.strategies.simple import Strategy

EVERYTHING = Footprint(frozenset(), everything=True)


class Redundant(BaseException):
    """The schedule would from here on only repeat another one. No failure, so no `Exception`."""


class NotDeterministic(Exception):
    """The same choices led to other options: the scenario depends on something besides its choices."""

    def __init__(self, position: int, before: Sequence[str], now: Sequence[str]) -> None:
        super().__init__(f"decision {position}: the options were {list(before)}, now they are {list(now)}")
        self.position = position
        self.before = tuple(before)
        self.now = tuple(now)


class Reduction(IntEnum):
    """What is left out."""

    NONE = 0
    """Nothing: every order of events."""
    SLEEP = 1
    """An event that was tried at some point sleeps in the later branches from there, until something happens that
    depends on it. Every state that can be reached is reached."""
    SOURCE = 2
    """Also: another branch is tried only where a race was seen. One schedule of each class of equivalent ones is run
    to its end, so every outcome at rest and every history of each single actor is seen; not every moment at which the
    states of several actors might be compared."""


class _Node:
    """One decision on the current path."""

    def __init__(
        self, kind: Kind, options: Sequence[Option], sleep: dict[tuple[str, int], Footprint], *, all_of_them: bool
    ) -> None:
        self.kind = kind
        self.events = [option.event for option in options]
        self.owners = [option.owner for option in options]
        self.sleep = sleep
        """Events that need not be tried here, with what they touch; those tried here join them."""
        awake = (index for index, event in enumerate(self.events) if event not in sleep)
        self.todo = set(range(len(options))) if all_of_them else set(islice(awake, 1))
        """Indices to try, those that were tried included."""
        self.chosen = 0
        self.footprint = EVERYTHING
        """What the chosen event touched."""

    def choose_next(self) -> bool:
        """Turn to the first event that is to be tried and does not sleep; False: there is none."""
        for index, event in enumerate(self.events):
            if index in self.todo and event not in self.sleep:
                self.chosen = index
                return True
        return False

    def try_one_of(self, owners: frozenset[str]) -> None:
        """One of these must go on here, in one of the branches."""
        able = [index for index, owner in enumerate(self.owners) if owner in owners]
        if able and self.todo.isdisjoint(able):
            self.todo.add(able[0])

    def sleep_after(self) -> dict[tuple[str, int], Footprint]:
        """What still sleeps when the chosen event has happened."""
        return {event: print_ for event, print_ in self.sleep.items() if print_.independent(self.footprint)}


class Exhaustive(Strategy):
    """Runs every schedule that `reduction` does not leave out, once.

    Decisions from `max_depth` on are fair, which makes it a bounded search (`complete` is False then).
    """

    name = "exhaustive"

    def __init__(self, *, max_depth: int = 10_000, reduction: Reduction = Reduction.SOURCE) -> None:
        self.max_depth = max_depth
        self.reduction = reduction
        self.complete = True
        """Whether no schedule was left out so far because of `max_depth`."""
        self._path: list[_Node] = []
        self._position = 0
        self._branched_at = 0
        """From this place on the path is new."""

    def begin(self) -> bool:
        path, self._position = self._path, 0
        if not path:
            return True
        while path:
            node = path[-1]
            node.sleep[node.events[node.chosen]] = node.footprint
            if node.choose_next():
                self._branched_at = len(path) - 1
                return True
            path.pop()
        return False

    def choose(self, kind: Kind, options: Sequence[Option]) -> int:
        at = self._position
        self._position += 1
        if at >= self.max_depth:
            self.complete = self.complete and len(options) == 1
            return 0
        if at < len(self._path):
            node = self._path[at]
            events = [option.event for option in options]
            if node.events != events:
                raise NotDeterministic(at, [event[0] for event in node.events], [event[0] for event in events])
            return node.chosen
        # A decision inside a handler is part of an event that is not over: nothing is known to sleep.
        sleeps = self.reduction is not Reduction.NONE and kind is Kind.NEXT and len(self._path) > 0
        asleep = self._path[-1].sleep_after() if sleeps else {}
        all_of_them = self.reduction is not Reduction.SOURCE or kind is not Kind.NEXT or options[-1].fault
        node = _Node(kind, options, asleep, all_of_them=all_of_them)
        if not node.choose_next():
            raise Redundant
        self._path.append(node)
        return node.chosen

    def executed(self, footprint: Footprint) -> None:
        """See `Follower`."""
        if self._position > self.max_depth:
            return
        # The event, and the decisions inside its handlers.
        for node in reversed(self._path[: self._position]):
            node.footprint = footprint
            if node.kind is Kind.NEXT:
                return

    def ended(self, choices: Choices) -> None:
        # A run that ended early leaves no decisions of an older path behind it.
        del self._path[self._position :]
        if self.reduction is Reduction.SOURCE:
            self._branch_at_races()

    def _branch_at_races(self) -> None:
        nodes = [node for node in self._path if node.kind is Kind.NEXT]
        since = sum(node.kind is Kind.NEXT for node in self._path[: self._branched_at])
        run = [Happened(node.owners[node.chosen], node.footprint) for node in nodes]
        for race in races(run, since):
            nodes[race.earlier].try_one_of(race.first_owners)
