"""Property `weight_groups`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pawl.lifecycle.machines.weight_group import WEIGHT_GROUP, GroupPhase
from pawl.lifecycle.machines.weights import WEIGHTS, WeightEvent, Weights
from pawl.lifecycle.properties.base import Property, Violation, on
from pawl.lifecycle.properties.beginning import Beginning
from pawl.lifecycle.properties.history import History
from pawl.lifecycle.records import WeightGroupMoved, WeightsMoved


class WeightGroups(Property):
    """A trainer's group moves as its table says, and is never the same again once it was left. It receives for an
    update that is being staged. Nothing is staged before all has come, and if that never comes the update has failed
    before the group ends."""

    name: ClassVar[str] = "weight_groups"

    def __init__(self) -> None:
        self._phases: dict[int, GroupPhase] = {}
        """Of groups that are not absent, by number."""
        self._newest = 0
        self._weights: Weights = WEIGHTS.start

    def begin(self, beginning: Beginning, history: History) -> Sequence[Violation]:
        self._weights = beginning.weights.state
        groups = beginning.groups
        self._phases = {group.number: group.phase for group in groups.groups.values()}
        self._newest = groups.joined
        return ()

    @on(WeightGroupMoved)
    def _moved(self, record: WeightGroupMoved, history: History) -> Sequence[Violation]:
        number, source, event, target = record.number, record.source, record.event, record.target
        phase = self._phases.pop(number, GroupPhase.ABSENT)
        legal = any(move[:3] == (source, event, target) for move in WEIGHT_GROUP.moves)
        again = source is GroupPhase.ABSENT and number <= self._newest
        self._newest = max(self._newest, number)
        if target is not GroupPhase.ABSENT:
            self._phases[number] = target
        if not legal or source != phase or again:
            text = f"{event} takes group {number} from {source} to {target}; it is {phase}"
            return (self.violation(history, f"{text}, and was left before" if again else text),)
        staging = self._weights is Weights.STAGING
        if target is GroupPhase.RECEIVING and not staging:
            return (self.violation(history, f"group {number} receives weights for no update"),)
        if source is GroupPhase.RECEIVING and staging != (target is GroupPhase.JOINED):
            return (self.violation(history, f"after {event} of group {number} the weights are {self._weights}"),)
        return ()

    @on(WeightsMoved)
    def _weights_moved(self, record: WeightsMoved, history: History) -> Sequence[Violation]:
        self._weights = record.target
        if record.event is WeightEvent.STAGED and GroupPhase.RECEIVING in self._phases.values():
            return (self.violation(history, "weights were staged of which some are still to come"),)
        return ()
