"""Groups in which trainers broadcast weights: which there are, and what each is at.

JoinWeightGroup ──► join ──► GroupMet
ReceiveWeights ──► receive ──► PartsReceived ──► (an update of the weights goes on from here)
             └──────── GroupLost ────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from pawl.lifecycle.journal import Journal
from pawl.lifecycle.machines.weight_group import WEIGHT_GROUP, GroupEvent, GroupPhase
from pawl.lifecycle.snapshot import Plain
from pawl.lifecycle.weight_group import Place, TensorSpec
from pawl.loops.weights import WeightKeeper

MOST_GROUPS = 8
"""Each is a process."""
JOINED = "Succeeded to initialize custom process group."
LEFT = "Succeeded to destroy custom process group."
UNKNOWN = "The group to be destroyed does not exist."
WAS_LEFT = "the group was left"
ENDED = "; the group has ended, and can be joined again"


class Group(msgspec.Struct):
    """One group that is not absent."""

    number: int
    """Counts groups; what is told of another one of this name is late."""
    phase: GroupPhase = GroupPhase.ABSENT
    asker: int = 0
    """The number under which the outcome of joining is waited for; 0: nobody does any more."""
    ticket: int = 0
    """Of the update that waits for what is received."""


class Members(Protocol):
    """Who is in the groups for the engine. Everything is answered later, by GroupMet, PartsReceived or GroupLost."""

    def join_group(self, number: int, place: Place) -> None:
        """Join a group."""

    def receive_weights(self, number: int, ticket: int, specs: Sequence[TensorSpec], flat: bool) -> None:
        """Receive these tensors, `flat`: put together to one, if the model has them."""

    def keep_groups(self, numbers: Sequence[int]) -> None:
        """Leave all groups but these. This is not answered."""


class GroupKeeper:
    """The groups of one engine, by name."""

    def __init__(
        self, journal: Journal, weights: WeightKeeper, members: Members, answer: Callable[[int, bool, str], None]
    ) -> None:
        """`answer` hears of the outcome of joining; that of receiving is the outcome of the update."""
        self.groups: dict[str, Group] = {}
        self._journal = journal
        self._weights = weights
        self._members = members
        self._answer = answer
        self._num_joined = 0

    @property
    def askers(self) -> set[int]:
        """Numbers of those who wait for a group to be joined."""
        return {group.asker for group in self.groups.values()} - {0}

    def join(self, place: Place, asker: int, now: float) -> str:
        """Somebody wants the engine to join. Returns why it does not, or "" where that is to come."""
        if place.group in self.groups:
            return f"the engine is {self.groups[place.group].phase} a group of this name; it can be left"
        if len(self.groups) >= MOST_GROUPS:
            return f"the engine is in {MOST_GROUPS} groups, which is the most"
        self._num_joined += 1
        self.groups[place.group] = Group(self._num_joined)
        self._move(place.group, GroupEvent.JOIN, now)
        self.groups[place.group].asker = asker
        self._members.join_group(self._num_joined, place)
        return ""

    def met(self, number: int, now: float) -> None:
        """The group is complete."""
        name = self._name_of(number, GroupPhase.JOINING)
        if name is not None:
            group = self.groups[name]
            self._move(name, GroupEvent.MET, now)
            self._tell_joined(group)

    def _tell_joined(self, group: Group) -> None:
        asker, group.asker = group.asker, 0
        self._answer(asker, True, JOINED)

    def unready(self, name: str) -> str:
        """Why nothing can be received in this group, whatever is sent; "" where that may be."""
        group = self.groups.get(name)
        if group is None:
            return f"the engine is in no group {name!r}: it must join first"
        return "the group is still to meet" if group.phase is GroupPhase.JOINING else ""

    def receive(self, name: str, ticket: int, specs: Sequence[TensorSpec], flat: bool, now: float) -> None:
        """An update waits for what the trainer of a group, which is ready, broadcasts next."""
        group = self.groups[name]
        group.ticket = ticket
        self._move(name, GroupEvent.RECEIVE, now)
        self._members.receive_weights(group.number, ticket, specs, flat)

    def unheard(self, name: str, now: float) -> bool:
        """What the trainer sends next is refused: the group ends, or it would be taken for what it sends after that.
        Whether there was one."""
        if name in self.groups:
            self._end(name, GroupEvent.LOST, "something else was refused in its group", now)
            return True
        return False

    def received(self, number: int, now: float) -> bool:
        """All that was expected has come, for the update that is being staged; False for late news."""
        name = self._name_of(number, GroupPhase.RECEIVING)
        if name is not None:
            self._move(name, GroupEvent.RECEIVED, now)
        return name is not None

    def leave(self, name: str, now: float) -> bool:
        """Somebody wants the engine to leave; whether it was there."""
        if name not in self.groups:
            return False
        self._end(name, GroupEvent.LEAVE, WAS_LEFT, now)
        return True

    def lost(self, number: int, reason: str, now: float) -> None:
        """The group is no more."""
        name = self._name_of(number, *GroupPhase)
        if name is not None:
            self._end(name, GroupEvent.LOST, reason, now)

    def recovered(self, reason: str, now: float) -> None:
        """The loop has failed in the middle of something: that a group is joined, or weights are received, may be
        lost."""
        for name, group in list(self.groups.items()):
            if group.phase is not GroupPhase.JOINED:
                self._end(name, GroupEvent.LOST, reason, now)
            else:
                self._tell_joined(group)
        self._members.keep_groups(self._numbers)

    def _end(self, name: str, event: GroupEvent, reason: str, now: float) -> None:
        group = self.groups[name]
        if group.phase is GroupPhase.RECEIVING:
            self._weights.failed(group.ticket, reason, now)
        if group.phase is not GroupPhase.ABSENT:
            self._move(name, event, now)
        del self.groups[name]
        self._members.keep_groups(self._numbers)
        if group.asker:
            self._answer(group.asker, False, reason)

    @property
    def _numbers(self) -> list[int]:
        return [group.number for group in self.groups.values()]

    def _name_of(self, number: int, *phases: GroupPhase) -> str | None:
        """The group that the news is of, where they can be true."""
        named = (name for name, group in self.groups.items() if group.number == number and group.phase in phases)
        return next(named, None)

    def _move(self, name: str, event: GroupEvent, now: float) -> None:
        group = self.groups[name]
        phase = WEIGHT_GROUP.next(group.phase, event)
        self._journal.weight_group(group.number, group.phase, event, phase, now)
        group.phase = phase

    # ---- checkpoints ----

    def snapshot(self) -> Plain:
        """All that decides."""
        return {"groups": msgspec.to_builtins(self.groups), "joined": self._num_joined}

    def restore(self, plain: Plain) -> None:
        """Go on from a snapshot."""
        groups: Any = msgspec.convert(plain["groups"], dict[str, Group])
        self.groups, self._num_joined = groups, plain["joined"]
