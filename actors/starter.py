"""Who starts replicas, as a router knows it."""

from __future__ import annotations

from typing import Protocol

from pawl.actors.names import Names


class Starter(Protocol):
    """Knows where replicas live. Its methods do not block."""

    def restart(self, lost: Names, *, why_not: str = "") -> str:
        """End what is left of a replica and, unless there is a reason `why_not`, start one in its place: ReplicaUp or
        ReplicaFailed is to follow. Why none is started; empty: one is."""

    def add(self, role: str) -> str:
        """Start one more: ReplicaUp or ReplicaFailed is to follow. Why none is started; empty: one is."""

    def end(self, names: Names) -> None:
        """A replica has left: end its actors, and start none in its place."""

    def over(self, name: str, reason: str) -> None:
        """The last replica is lost, as the actor `name` is gone, and none will be started."""
