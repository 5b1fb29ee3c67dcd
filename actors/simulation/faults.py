"""Faults that a simulated run may suffer. Each kind is off by default and has a budget: the number of times that it may
strike in one run. Whether and where it strikes is a choice like any other, named in the record.

A fault is something the real world does. Messages are lost or doubled only on wires (between processes); inside a
process they are not.
"""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

import msgspec


class FaultKind(StrEnum):
    """Names of budgets, and first word of the labels of the options."""

    CRASH = "crash"
    """An actor fails, before it handles a message or right after."""
    LOSE = "lose"
    """A message on a wire never arrives."""
    DOUBLE = "double"
    """A message on a wire arrives twice."""
    RUSH = "rush"
    """The clock goes on to the next deadline although somebody has work: everybody was slow."""
    LATE = "late"
    """A timer fires `late_s` after it was due."""
    JUMP = "jump"
    """The wall clock is set forward or back by `jump_s`."""
    KILL = "kill"
    """A whole process ends at once, in the middle of what it says and hears (`simulation/processes.py`)."""
    FREEZE = "freeze"
    """A whole process stands still, and goes on later, perhaps after others have taken it for lost."""
    PART = "part"
    """A whole process is out of reach of the first one, and is reached again later, or taken for lost."""
    STRIKE = "strike"
    """A place in the scenario that asks (`SimulatedSystem.strikes`) fails: a step raises, an allocation fails."""
    GARBLE = "garble"
    """What such a place gives means nothing, and says so."""
    FAIL = "fail"
    """A line of a handler raises, where the scenario has it (`pawl.testing.failing`)."""


ASKED = (FaultKind.STRIKE, FaultKind.GARBLE, FaultKind.FAIL)
"""Where the scenario asks, and nowhere else."""


class Faults(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Budgets of one run."""

    crash: int = 0
    lose: int = 0
    double: int = 0
    rush: int = 0
    late: int = 0
    jump: int = 0
    strike: int = 0
    garble: int = 0
    fail: int = 0
    kill: int = 0
    freeze: int = 0
    part: int = 0
    in_work: bool = False
    """Processes are lost only while they have work that would be seen to be missing, as the scenario has it."""
    may_crash: Collection[str] | None = None
    """Names of the actors that may crash; None: all."""
    late_s: float = 5.0
    jump_s: float = 3600.0

    def __post_init__(self) -> None:
        if min(self.budget(kind) for kind in FaultKind) < 0:
            raise ValueError(f"a budget below zero: {self}")
        if self.late_s <= 0.0 or self.jump_s <= 0.0:
            raise ValueError("late_s and jump_s must be above 0")

    def budget(self, kind: FaultKind) -> int:
        """How often faults of this kind may strike."""
        value: int = getattr(self, kind.value)
        return value


class FaultBudget:
    """What is left of the budgets of one run."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self.left = {kind: faults.budget(kind) for kind in FaultKind}
        self.struck: list[str] = []
        """Labels of the faults so far."""
        self.any_left = self._any_left()
        """Whether a fault that is an event of its own may still strike."""

    def _any_left(self) -> bool:
        return any(count for kind, count in self.left.items() if kind not in ASKED)

    def spend(self, kind: FaultKind, label: str) -> None:
        """One fault strikes. Raises ValueError when its budget is used up."""
        if self.left[kind] == 0:
            raise ValueError(f"no {kind.value} is left")
        self.left[kind] -= 1
        self.any_left = self._any_left()
        self.struck.append(label)


class InjectedCrash(Exception):
    """The failure of an actor that was chosen to fail: before or after a message, or with all of its process."""

    def __init__(self, actor: str, moment: str) -> None:
        super().__init__(f"{actor} was made to fail {moment}")
        self.actor = actor
