"""What the head and the agent of a node tell each other."""

from __future__ import annotations

import msgspec

from pawl.build.ready import Setup, Told

HEAD = "head"
"""Name of the process that places replicas, as nodes know it, and of the actor there to which they report."""

# ---- at the door, before there is a link ----


class Join(msgspec.Struct, frozen=True, tag=True):
    """A node wants a place."""

    version: str
    instance: str
    """The same in each try of one that joins, and in no other's."""
    address: str
    """Its own, as it reaches the head."""
    place: int | None = None
    """Which one it is for, of those that the head has had made; None: any."""
    role: str | None = None
    """Of the replicas that it is for; None: of any."""

    def as_before(self, other: Join) -> bool:
        """Whether both come from one host, for the same."""
        return (self.address, self.place, self.role) == (other.address, other.place, other.role)


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """It has one."""

    name: str
    """Of its actor, and of its process: `node.K`. No other node ever has it."""
    address: str
    """Where the head waits for its link. Nodes put the host at which they found the head in place of the one here."""


class Full(msgspec.Struct, frozen=True, tag=True):
    """All places are taken: ask again."""


class Unwanted(msgspec.Struct, frozen=True, tag=True):
    """It can have none."""

    reason: str


Answer = Welcome | Full | Unwanted

# ---- over the link ----


class Start(msgspec.Struct, frozen=True, tag=True):
    """Start the process of a replica."""

    setup: Setup
    num_here: int
    """Replicas that share the cores of the host."""


class Stop(msgspec.Struct, frozen=True, tag=True):
    """End one at once, whatever it is at."""

    process: str


class Started(msgspec.Struct, frozen=True, tag=True):
    """It runs."""

    process: str
    pid: int


class Said(msgspec.Struct, frozen=True, tag=True):
    """It has said so, before it serves."""

    process: str
    told: Told


class Exited(msgspec.Struct, frozen=True, tag=True):
    """It has ended, or could not be started."""

    process: str
    how: str
