"""The groups actor: what fails in the middle is done again, and loses no member."""

from __future__ import annotations

from typing import Any

from pawl.actors.messages.weights import JoinGroup, KeepGroups
from pawl.actors.names import NAMES
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.weight_groups import Trainers, WeightGroups
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.trainers.received import Received
from pawl.lifecycle.weight_group import Place


class Stubborn:
    """A member that cannot leave the first time."""

    def __init__(self, *_: Any) -> None:
        self.asked_to_leave = 0

    def leave(self) -> None:
        self.asked_to_leave += 1
        if self.asked_to_leave == 1:
            raise OSError("no such process")


def test_a_member_that_could_not_leave_is_asked_again() -> None:
    member = Stubborn()
    trainers = Trainers(make_member=lambda *_: member)  # type: ignore[arg-type, return-value]
    ghost = Ghost(num_pages=4, page_size=2, num_slots=2, max_context=8)
    groups = WeightGroups(ghost, Received(), trainers)
    context = ManualContext(groups, NAMES.groups)
    place = Place(group="group", address="localhost", port=1, rank=1, world_size=2, backend="gloo")
    context.deliver(JoinGroup(1, place))
    context.deliver(KeepGroups(()))
    assert member.asked_to_leave == 2
    assert not groups._groups
