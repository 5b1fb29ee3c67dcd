"""The groups actor: one that takes too long, fails or is not let in has ended, and what fails in the middle is done
again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from pawl.actors.messages.weights import UNREAD, JoinGroup, KeepGroups, ReceiveParts
from pawl.actors.names import NAMES
from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.manual import ManualContext
from pawl.actors.weight_groups import LATE, TimeOver, Trainers, WeightGroups
from pawl.gpu.ghost.runner import Ghost
from pawl.gpu.trainers.received import Received
from pawl.lifecycle.weight_group import Place, TensorSpec
from pawl.lifecycle.weight_source import FromMemory
from pawl.loops.orders.weight_groups import GroupLost, GroupMet, PartsReceived
from pawl.loops.weight_groups import ENDED

PARTS = (TensorSpec("ghost.first", "uint64", (1,)),)
LIMIT_S = 30.0


class Member:
    """Does as it is told, at once."""

    def __init__(self, place: Place, limit_s: float, heard: Callable[[str], None]) -> None:
        self.place, self.limit_s, self.heard = place, limit_s, heard
        self.asked: list[object] = []
        self.received = FromMemory(PARTS, (0, 8), np.zeros(8, np.uint8).data)

    def receive(self, specs: Sequence[TensorSpec], flat: bool) -> None:
        self.asked.append((tuple(specs), flat))

    def leave(self) -> None:
        self.asked.append("leave")


class Stubborn(Member):
    """Cannot leave the first time."""

    def leave(self) -> None:
        super().leave()
        if len(self.asked) == 1:
            raise OSError("no such process")


class Broken(Member):
    """Cannot be asked."""

    def receive(self, specs: Sequence[TensorSpec], flat: bool) -> None:
        raise OSError("no such process")


class World:
    """A groups actor that has joined one group, number 1."""

    def __init__(self, kind: type[Member] = Member) -> None:
        ghost = Ghost(num_pages=4, page_size=2, num_slots=2, max_context=8)
        self.members: list[Member] = []
        self.received = Received()

        def make_member(*arguments: Any) -> Member:
            self.members.append(kind(*arguments))
            return self.members[-1]

        trainers = Trainers(limit_s=LIMIT_S, make_member=make_member)
        self.groups = WeightGroups(ghost, self.received, trainers)
        self.context = ManualContext(self.groups, NAMES.groups)
        self.join(1)

    def join(self, number: int, address: str = "localhost") -> None:
        place = Place(group="group", address=address, port=1, rank=1, world_size=2, backend="gloo")
        self.context.deliver(JoinGroup(number, place))

    def told(self) -> list[Any]:
        """What the scheduler was told, and what the actor has told itself, which it hears."""
        for sent in (sent for sent in self.context.sent if sent.to == NAMES.groups):
            self.context.deliver(sent.message)
        assert all(sent.lane is Lane.CONTROL for sent in self.context.sent)
        self.context.take(NAMES.groups)
        return self.context.take(NAMES.scheduler)


def test_a_group_meets_receives_what_it_is_told_of_and_is_left_once() -> None:
    world = World()
    (member,) = world.members
    assert (member.place.rank, member.limit_s) == (1, LIMIT_S)
    member.heard("")
    assert world.told() == [GroupMet(1)]
    for ticket, flat in ((3, False), (4, True)):
        world.context.deliver(ReceiveParts(1, ticket, PARTS, flat))
        assert world.told() == []
        member.heard("")
        assert world.told() == [PartsReceived(1)]
        assert world.received.take(ticket) is member.received
    world.context.deliver(KeepGroups((1, 2)))
    assert member.asked == [(PARTS, False), (PARTS, True)]
    world.context.deliver(KeepGroups(()))
    assert member.asked[2:] == ["leave"]
    member.heard("its last words")
    world.context.advance(2 * LIMIT_S)
    for late in (TimeOver(1), ReceiveParts(1, 5, PARTS, False)):
        world.context.deliver(late)
    assert (world.told(), member.asked[2:]) == ([], ["leave"])


@pytest.mark.parametrize("busy", [False, True])
def test_who_takes_too_long_has_ended_and_who_was_in_time_has_not(busy: bool) -> None:
    world = World()
    (member,) = world.members
    if busy:
        world.context.advance(LIMIT_S - 1.0)
        member.heard("")
        assert world.told() == [GroupMet(1)]
        world.context.advance(2 * LIMIT_S)
        world.context.deliver(ReceiveParts(1, 3, PARTS, False))
    world.context.advance(LIMIT_S - 1.0)
    assert world.told() == []
    world.context.advance(1.0)
    assert world.told() == [GroupLost(1, LATE.format(LIMIT_S))]
    assert (member.asked[-1], world.groups._groups) == ("leave", {})


@pytest.mark.parametrize(
    ("kind", "parts", "reason"),
    [
        (Broken, PARTS, f"{UNREAD}: OSError"),
        (Member, (TensorSpec("other", "uint64", (1,)),), f"a ghost has no weight 'other'; it has .*{ENDED}"),
    ],
)
def test_what_cannot_be_received_ends_the_group(kind: type[Member], parts: Any, reason: str) -> None:
    world = World(kind)
    (member,) = world.members
    world.context.deliver(ReceiveParts(1, 3, parts, False))
    ((number, said),) = [(lost.number, lost.reason) for lost in world.told()]
    assert number == 1
    assert re.fullmatch(reason, said)
    assert (member.asked, world.groups._groups) == (["leave"], {})


def test_what_a_member_says_is_the_reason_and_a_stranger_is_not_joined() -> None:
    world = World()
    world.members[0].heard("no such port")
    world.join(2, "elsewhere")
    assert world.told() == [GroupLost(2, "elsewhere is none of the trainer hosts"), GroupLost(1, "no such port")]
    assert len(world.members) == 1


def test_a_member_that_could_not_leave_is_asked_again() -> None:
    world = World(Stubborn)
    world.context.deliver(KeepGroups(()))
    assert world.members[0].asked == ["leave"] * 2
    assert not world.groups._groups


def test_who_stops_leaves_every_group() -> None:
    world = World()
    world.join(2)
    world.groups.stopped("enough")
    assert [member.asked for member in world.members] == [["leave"]] * 2
