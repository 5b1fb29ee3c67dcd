"""What a property of the loop's state is: one that looks at a loop, not at what it has recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pawl.lifecycle.properties.base import Property
from pawl.memory.violation import MemoryViolation

if TYPE_CHECKING:
    from pawl.loops.loop import Loop


class Broken(MemoryViolation):
    """A property does not hold of a loop. `statement`: what memory says of itself, or what else is wrong."""

    def __init__(self, name: str, statement: str, explanation: str) -> None:
        super().__init__(statement)
        self.property = name
        self.explanation = explanation

    def __str__(self) -> str:
        return self.explanation


class StateProperty(Property):
    """Something that must hold of a loop whenever none of its verbs is under way. Each look raises MemoryViolation or
    AssertionError where it does not.

    Some judge records as well: those are the same class, with what there is to look at in a loop added to it.
    """

    def check(self, loop: Loop) -> None:
        """After every step; O(1)."""

    def check_admitted(self, loop: Loop) -> None:
        """After a plan that admits somebody, before the step is launched; O(requests at work)."""

    def check_held_back(self, loop: Loop) -> None:
        """After a plan without prompts while some are under way, before the step is launched; O(1)."""

    def check_idle(self, loop: Loop) -> None:
        """After a turn that has left nothing in flight: there is nothing to do, or nothing can be done; O(1)."""

    def check_all(self, loop: Loop) -> None:
        """At leisure; O(size)."""


Look = Callable[["Loop"], None]


class StateChecks:
    """Looks at a loop with every property of its state, and gives names to what it finds."""

    def __init__(self, properties: Sequence[StateProperty]) -> None:
        self.properties = properties
        self._quick = _looks(properties, "check")
        self._admitted = _looks(properties, "check_admitted")
        self._held_back = _looks(properties, "check_held_back")
        self._idle = _looks(properties, "check_idle")
        self._thorough = _looks(properties, "check_all")

    def check(self, loop: Loop) -> list[Broken]:
        """What a step has broken."""
        return _found(self._quick, loop)

    def check_admitted(self, loop: Loop) -> list[Broken]:
        """What is wrong with letting somebody in."""
        return _found(self._admitted, loop)

    def check_held_back(self, loop: Loop) -> list[Broken]:
        """What is wrong with a step that does nothing for prompts."""
        return _found(self._held_back, loop)

    def check_idle(self, loop: Loop) -> list[Broken]:
        """What is wrong with having nothing to do."""
        return _found(self._idle, loop)

    def check_all(self, loop: Loop) -> list[Broken]:
        """Everything that does not hold, one for each property."""
        return _found((*self._quick, *self._thorough), loop)


def _looks(properties: Sequence[StateProperty], name: str) -> tuple[tuple[str, Look], ...]:
    """The looks called `name` of those that have one of their own, with the names of the properties."""
    own = [each for each in properties if getattr(type(each), name) is not getattr(StateProperty, name)]
    return tuple((each.name, getattr(each, name)) for each in own)


def _found(looks: Sequence[tuple[str, Look]], loop: Loop) -> list[Broken]:
    found: list[Broken] = []
    for name, look in looks:
        try:
            look(loop)
        except (MemoryViolation, AssertionError) as error:
            found.append(Broken(name, getattr(error, "statement", str(error)), str(error)))
    return found
