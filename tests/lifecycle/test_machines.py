"""The machines of control messages: a table each, which refuses what it does not have."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest

from pawl.lifecycle.machines import MACHINES
from pawl.lifecycle.machines.base import IllegalMove, Machine

EACH = pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)


class Door(StrEnum):
    OPEN = "open"
    SHUT = "shut"


class Hand(StrEnum):
    PUSH = "push"
    PULL = "pull"


def test_a_move_that_the_table_lacks_is_refused_and_names_both() -> None:
    door = Machine("door", "", Door.SHUT, ((Door.SHUT, Hand.PULL, Door.OPEN, "it opens"),))
    assert door.next(Door.SHUT, Hand.PULL) is Door.OPEN
    with pytest.raises(IllegalMove, match="door: push is not allowed while it is shut"):
        door.next(Door.SHUT, Hand.PUSH)


@EACH
def test_a_state_and_an_event_lead_to_one_state(machine: Machine[Any, Any]) -> None:
    pairs = [(state, event) for state, event, *_ in machine.moves]
    assert len(pairs) == len(set(pairs))


@EACH
def test_every_state_can_be_reached_and_is_explained(machine: Machine[Any, Any]) -> None:
    reached = {machine.start}
    for _ in machine.moves:
        reached |= {target for source, _, target, _ in machine.moves if source in reached}
    assert reached == set(type(machine.start))
    assert machine.about.endswith(".")
