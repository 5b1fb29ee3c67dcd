"""The scheduler's side of memory that is released and resumed: what it tells the worker, and the gateway."""

from __future__ import annotations

from pawl.actors.messages.memory import MemoryReleased, MoveMemory
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.lifecycle.machines.memory import MemoryTag, in_order
from pawl.loops.intake import Intake


class MemoryClient:
    """Sends for the scheduler `actor`."""

    def __init__(self, actor: Actor, names: Names) -> None:
        self._actor = actor
        self._names = names
        self._asked = 0
        """The move that the worker was told of last."""
        self._told: frozenset[MemoryTag] | None = frozenset()
        """What the gateway was told last."""

    def settled(self, intake: Intake) -> None:
        """Tell what is new. Steps that were launched before a move have come back: none could begin else."""
        move = intake.memory.move
        if move is not None and move.ticket != self._asked:
            self._asked = move.ticket
            self._actor.context.send(self._names.worker, MoveMemory(move.ticket, move.event, move.tags))
        self.tell(intake)

    def tell(self, intake: Intake) -> None:
        """Let the gateway know what is released, before anybody is told of a move."""
        released = intake.loop.released
        if released != self._told:
            self._told = released
            told = MemoryReleased(in_order(released), self._names.replica)
            self._actor.context.send(self._names.gateway, told, Lane.CONTROL)

    def recovered(self) -> None:
        """The scheduler has failed in the middle of something: all are told again, and the worker answers again."""
        self._asked, self._told = 0, None
