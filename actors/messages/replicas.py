"""Replicas that come and go: who starts them, router, and gateway.

who starts them ── ReplicaUp, ReplicaFailed ──► router ── ReplicaJoined, Placed, ReplicaLost, NoneLeft ──► gateway
                                                      ── ReplicaLeft ──► ◄── Parted ──
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


class LeaveNow(msgspec.Struct, frozen=True, tag=True):
    """The router's own timer: requests of a replica that leaves have had the time that they may take to end there."""

    replica: int
    order: int
    """Which of the orders to leave, if there were several."""


class LookAgain(msgspec.Struct, frozen=True, tag=True):
    """The router's own timer: the load may have been high, or low, for long enough."""


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


class ReplicaLeft(msgspec.Struct, frozen=True, tag=True):
    """router -> gateway: a replica has no requests any more, and gets none; `Parted` is wanted."""

    replica: int
    recorder: str
    gone: tuple[str, ...]
    """Its actors."""
    whole: bool
    """All that it had have ended there: its trace has all that their clients were told."""


class Parted(msgspec.Struct, frozen=True, tag=True):
    """gateway -> router: nothing that this replica said is still to be told to clients."""

    replica: int


class ReplicaCounts(msgspec.Struct, frozen=True, tag=True):
    """router -> gateway: how many replicas take requests of clients."""

    wanted: int
    serving: int
    starting: int
    leaving: int
    """Have requests, and take no more."""
    on_load: bool
    """Whether the load changes the number."""


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
FromRouter: TypeAlias = Placed | ReplicaJoined | ReplicaLost | ReplicaLeft | ReplicaCounts | NotReplaced | NoneLeft
