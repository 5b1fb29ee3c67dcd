"""The groups actor is a member of every group in which a trainer broadcasts weights.

    scheduler ──JoinGroup, ReceiveParts──► groups ──GroupMet, PartsReceived, GroupLost──► scheduler
    scheduler ──KeepGroups──► groups       what is received lies in `Received`, where the stager finds it

It waits for nobody: members work beside it and tell it what they have done. One that takes too long is ended, and so is
its group, at whatever it is.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import msgspec
import structlog

from pawl.actors.messages.weights import UNREAD, JoinGroup, KeepGroups, ReceiveParts
from pawl.actors.names import NAMES, Names
from pawl.actors.runtime.actor import Actor, Lane, Timer
from pawl.actors.stager import shortened
from pawl.gpu.step_runner import StepRunner, WeightsRefused
from pawl.gpu.trainers.member import ChildMember, MakeMember, Member
from pawl.gpu.trainers.received import Received
from pawl.loops.intake import Order
from pawl.loops.orders.weight_groups import GroupLost, GroupMet, PartsReceived
from pawl.loops.weight_groups import ENDED

LIMIT_S = 300.0
LOCAL = ("localhost", "127.0.0.1", "::1")
LATE = "the trainer was not there within {:g} s"

log = structlog.get_logger("pawl.groups")


class Heard(msgspec.Struct, frozen=True, tag=True):
    """A member's own: it has done what it was asked for, or says why not."""

    number: int
    refusal: str


class TimeOver(msgspec.Struct, frozen=True, tag=True):
    """Timer: the member should have done by now what it was asked for."""

    number: int


class _Joined(msgspec.Struct):
    """One group."""

    member: Member
    timer: Timer
    ticket: int = 0
    """Of the update for which it receives; 0: it is joining, or asked for nothing."""


class Trainers(NamedTuple):
    """Who may broadcast weights, and how they are taken."""

    hosts: tuple[str, ...] = LOCAL
    """As clients write them."""
    limit_s: float = LIMIT_S
    """How long a group may take to meet, and what is said to come may take to come."""
    make_member: MakeMember = ChildMember


class WeightGroups(Actor):
    """Any number of groups, each at its own thing."""

    accepts = JoinGroup | ReceiveParts | KeepGroups | Heard | TimeOver

    def __init__(self, runner: StepRunner[Any], received: Received, trainers: Trainers, names: Names = NAMES) -> None:
        self._names = names
        self._runner = runner
        self._received = received
        self._trainers = trainers
        self._groups: dict[int, _Joined] = {}

    def receive(self, message: Any) -> None:
        match message:
            case JoinGroup(number, place):
                if place.address not in self._trainers.hosts:
                    self._tell(GroupLost(number, shortened(f"{place.address} is none of the trainer hosts")))
                    return
                timer, make = self._clock(number), self._trainers.make_member
                # In one line: a member that nobody knows would wait for its trainer.
                self._groups[number] = _Joined(make(place, self._trainers.limit_s, partial(self._heard, number)), timer)
            case ReceiveParts(number):
                self._receive(number, message)
            case KeepGroups(numbers):
                for number in [number for number in self._groups if number not in numbers]:
                    self._leave(number)
            case Heard(number, refusal):
                self._done(number, refusal)
            case TimeOver(number):
                self._lose(number, LATE.format(self._trainers.limit_s))

    def spares(self, message: Any, error: Exception) -> bool:
        """The group ends, in which nothing has been touched that serves."""
        self.told_of(error)
        if isinstance(message, KeepGroups):  # can be done again, whatever was done of it
            self.receive(message)
        else:
            self._leave(message.number)
            self._tell(GroupLost(message.number, f"{UNREAD}: {type(error).__name__}"))
        return True

    def stopped(self, reason: str) -> None:
        for number in list(self._groups):
            self._leave(number)

    def _receive(self, number: int, message: ReceiveParts) -> None:
        group = self._groups.get(number)
        if group is None:
            return  # that it is lost was told
        try:
            self._runner.expect(message.specs)
        except WeightsRefused as refused:
            self._lose(number, f"{refused}{ENDED}")
            return
        group.ticket, group.timer = message.ticket, self._clock(number)
        group.member.receive(message.specs, message.flat)

    def _done(self, number: int, refusal: str) -> None:
        group = self._groups.get(number)
        if group is None:
            return  # the last words of one that was left
        group.timer.cancel()
        if refusal:
            self._lose(number, refusal)
        elif group.ticket:
            self._received.put(group.ticket, group.member.received)
            self._tell(PartsReceived(number))
        else:
            self._tell(GroupMet(number))

    def _lose(self, number: int, reason: str) -> None:
        if number in self._groups:
            self._leave(number)
            self._tell(GroupLost(number, shortened(reason)))

    def _leave(self, number: int) -> None:
        group = self._groups.get(number)
        if group is not None:
            group.timer.cancel()
            group.member.leave()
            del self._groups[number]

    def _clock(self, number: int) -> Timer:
        return self.context.after(self._trainers.limit_s, TimeOver(number))

    def _heard(self, number: int, refusal: str) -> None:
        """Of a member; in any thread."""
        self.context.send(self.context.name, Heard(number, refusal), Lane.CONTROL)

    def _tell(self, order: Order) -> None:
        if isinstance(order, GroupLost):
            log.warning("a trainer's group has ended", reason=order.reason)
        self.context.send(self._names.scheduler, order, Lane.CONTROL)
