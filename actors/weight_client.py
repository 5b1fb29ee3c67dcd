"""The scheduler's side of an update of the weights: what it tells stager, groups, worker, and gateway."""

from __future__ import annotations

from collections.abc import Sequence

from pawl.actors.messages.weights import JoinGroup, KeepGroups, ReceiveParts, Stage, Swap, WeightsServed
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Actor, Lane
from pawl.lifecycle.weight_group import Place, TensorSpec
from pawl.lifecycle.weight_source import Sent
from pawl.loops.intake import Intake
from pawl.loops.recovery import FAILED_ORDER
from pawl.loops.weights import Served


class WeightClient:
    """Sends for the scheduler `actor`."""

    def __init__(self, actor: Actor, names: Names) -> None:
        self._actor = actor
        self._names = names
        self._asked = 0
        """The update for which the worker was told to exchange the weights last."""

    def stage(self, ticket: int, source: Sent, last: bool) -> None:
        """Have new weights laid out beside the old ones."""
        self._actor.context.send(self._names.stager, Stage(ticket, source, last))

    def join_group(self, number: int, place: Place) -> None:
        """Have a trainer's group joined."""
        self._to_groups(JoinGroup(number, place))

    def receive_weights(self, number: int, ticket: int, specs: Sequence[TensorSpec], flat: bool) -> None:
        """Have what its trainer broadcasts received."""
        self._to_groups(ReceiveParts(number, ticket, tuple(specs), flat))

    def keep_groups(self, numbers: Sequence[int]) -> None:
        """Have all other groups left."""
        self._to_groups(KeepGroups(tuple(numbers)))

    def _to_groups(self, message: JoinGroup | ReceiveParts | KeepGroups) -> None:
        self._actor.context.send(self._names.groups, message, Lane.CONTROL)

    def swap_if_due(self, intake: Intake) -> None:
        """New weights are staged, every step has come back, and no memory moves: the worker is to exchange them."""
        weights = intake.weights
        if weights.update is None or not weights.swapping or intake.loop.in_flight:
            return
        if weights.update.ticket != self._asked and intake.memory.move is None:
            self._asked = weights.update.ticket
            self._actor.context.send(self._names.worker, Swap(self._asked))

    def recovered(self, intake: Intake, now: float) -> None:
        """The scheduler has failed in the middle of something: the worker is asked again, who answers again."""
        self._asked = 0
        intake.weights.recovered(FAILED_ORDER, now)
        intake.groups.recovered(FAILED_ORDER, now)

    def exchanged(self, served: Served) -> None:
        """Tell what is served."""
        told = WeightsServed(served.version, served.source, served.fingerprint, self._names.replica)
        self._actor.context.send(self._names.gateway, told, Lane.CONTROL)
