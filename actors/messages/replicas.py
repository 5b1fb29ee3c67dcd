"""Replicas that come and go: who starts them, router, and gateway.

who starts them ── ReplicaUp, ReplicaFailed ──► router ── ReplicaJoined, Placed, ReplicaLost, NoneLeft ──► gateway
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from pawl.actors.messages.adapters import AdaptersNamed
from pawl.actors.messages.control import Pulse, Stalled, TraceLoss
from pawl.actors.messages.memory import MemoryReleased
from pawl.actors.messages.weights import WeightsServed
from pawl.actors.names import UNIFIED, Names


class ReplicaUp(msgspec.Struct, frozen=True, tag=True):
    """Who starts replicas -> router: one with actors of these names takes requests."""

    names: Names


class ReplicaFailed(msgspec.Struct, frozen=True, tag=True):
    """Who starts replicas -> router: one could not be started."""

    reason: str
    role: str = UNIFIED


class PlaceAgain(msgspec.Struct, frozen=True, tag=True):
    """The router's own timer: replicas did not take all requests that they were given."""


class Placed(msgspec.Struct, frozen=True, tag=True):
    """router -> gateway: this replica has the request now. Comes before all that it makes of it."""

    request: int
    recorder: str
    """Who writes the trace of that replica."""


class ReplicaJoined(msgspec.Struct, frozen=True, tag=True):
    """router -> gateway: a replica takes requests, or will."""

    recorder: str


class ReplicaLost(msgspec.Struct, frozen=True, tag=True):
    """router -> gateway: a replica was given up, as an actor of it is gone."""

    recorder: str
    """Its trace gets no more answers."""
    gone: tuple[str, ...]
    """Its actors."""
    name: str
    """The actor."""
    reason: str


class NotReplaced(msgspec.Struct, frozen=True, tag=True):
    """router -> gateway: one replica less serves from now on."""

    reason: str


class NoneLeft(msgspec.Struct, frozen=True, tag=True):
    """router -> gateway: no replica takes requests any more, and none will be started."""

    name: str
    """What was lost last: an actor, or a replica that was to be started."""
    reason: str


FromReplica: TypeAlias = WeightsServed | AdaptersNamed | MemoryReleased | Stalled | Pulse | TraceLoss
"""What a replica tells the gateway of itself."""
FromRouter: TypeAlias = Placed | ReplicaJoined | ReplicaLost | NotReplaced | NoneLeft
