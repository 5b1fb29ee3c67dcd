"""What follows from something that has happened, step by step: a step that fails is done again, and none twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

Step: TypeAlias = Callable[[], "Iterable[Step] | None"]
"""Gives the steps that are to be done in its place, if any. Nothing that counts may come behind what cannot be done
twice."""
Steps: TypeAlias = "Iterable[Step] | None"


class Agenda:
    """Steps that are still to be done, in their order."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self._latest: object = None

    def take(self, message: object, step: Step) -> None:
        """`step` deals with `message`: nothing is added if it was taken last already."""
        if message is not self._latest:
            self._steps, self._latest = [*self._steps, step], message

    def add(self, step: Step) -> None:
        """One more, the last."""
        self._steps.append(step)

    def go_on(self) -> None:
        """Do them all. One that raises is the first the next time."""
        while self._steps:
            self._steps[:1] = self._steps[0]() or ()
