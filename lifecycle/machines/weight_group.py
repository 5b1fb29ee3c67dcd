"""How an engine and a trainer that broadcasts weights are connected."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeAlias

from pawl.lifecycle.machines.base import Machine


class GroupPhase(StrEnum):
    """Where a group is."""

    ABSENT = "absent"
    """The engine is in no group of this name, and has nothing left of one."""
    JOINING = "joining"
    """The trainer and its other members are waited for."""
    JOINED = "joined"
    """Weights can be received."""
    RECEIVING = "receiving"
    """The trainer broadcasts, or is about to. An update of the weights is under way, and waits for what comes."""


class GroupEvent(StrEnum):
    """Orders, and what becomes of them."""

    JOIN = "join"
    MET = "met"
    RECEIVE = "receive"
    RECEIVED = "received"
    LEAVE = "leave"
    LOST = "lost"


_s, _e = GroupPhase, GroupEvent
GroupMove: TypeAlias = tuple[GroupPhase, GroupEvent, GroupPhase, str]
_PRESENT = (_s.JOINING, _s.JOINED, _s.RECEIVING)
_MOVES: tuple[GroupMove, ...] = (
    (_s.ABSENT, _e.JOIN, _s.JOINING, "somebody asks the engine to join"),
    (_s.JOINING, _e.MET, _s.JOINED, "all its members are there"),
    (_s.JOINED, _e.RECEIVE, _s.RECEIVING, "somebody says which weights come next"),
    (_s.RECEIVING, _e.RECEIVED, _s.JOINED, "all of them have come"),
    *((state, _e.LEAVE, _s.ABSENT, "somebody asks the engine to leave; what is under way fails") for state in _PRESENT),
    *(
        (state, _e.LOST, _s.ABSENT, "the trainer is gone or late, or has sent, or is to send, what is not expected")
        for state in _PRESENT
    ),
)

WEIGHT_GROUP: Machine[GroupPhase, GroupEvent] = Machine(
    "weight_group",
    "How an engine is connected with a trainer that broadcasts weights. Whatever goes wrong in a group ends it: nobody "
    "can tell then to what the next broadcast belongs.",
    _s.ABSENT,
    _MOVES,
)
