"""What the machine of a control message is: a table of moves, with the uses that a request's own table has. It guards
the running server, judges recorded traces, and is printed in docs/lifecycle.md."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

S = TypeVar("S", bound=StrEnum)
E = TypeVar("E", bound=StrEnum)


class IllegalMove(Exception):
    """The table has no such move."""

    def __init__(self, machine: str, state: StrEnum, event: StrEnum) -> None:
        super().__init__(f"{machine}: {event} is not allowed while it is {state}")


@dataclass(frozen=True)
class Machine(Generic[S, E]):
    """States, events, and where each event leads. Neither is reused by another machine."""

    name: str
    about: str
    start: S
    moves: tuple[tuple[S, E, S, str], ...]
    """(state, event, state after it, what the move means)"""

    def next(self, state: S, event: E) -> S:
        """The state after `event`. Raises IllegalMove."""
        for source, given, target, _ in self.moves:
            if source == state and given == event:
                return target
        raise IllegalMove(self.name, state, event)
