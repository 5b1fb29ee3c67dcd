"""Who starts and ends replicas of a simulated engine."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from pawl.actors.messages.replicas import ReplicaFailed, ReplicaUp
from pawl.actors.names import FRONT, ROUTER, Names
from pawl.actors.runtime.receiver import Receiver
from pawl.build.wiring import all_names, watch_replica

if TYPE_CHECKING:
    from pawl.testing.cluster import Cluster

LEFT = "its replica has left"
MOST_ADDED = 12
"""A load that goes up and down at once, as rules may be drawn, must come to an end."""


class SimulatedStarter:
    """Starts as many replicas again as the workload says."""

    def __init__(self, run: Cluster) -> None:
        self._run = run
        self._left = run.workload.shape.max_restarts
        self._room = MOST_ADDED
        self.num_left = 0
        self.gone: set[Names] = set()
        """Those that were ended, or are being ended."""
        self._ending: list[deque[Receiver]] = []
        """Of each replica that has left, the actors that have not ended, in their order."""

    @property
    def num_added(self) -> int:
        """Beside those that were started in the place of others."""
        return MOST_ADDED - self._room

    def restart(self, lost: Names, *, why_not: str = "") -> str:
        """The rest of the lost one handles what waits for it, and ends; in order, where it is lost for another reason
        than an actor that is gone."""
        for replica in self._run.replicas:
            replica.lost = replica.lost or replica.names == lost
        if not lost.own & self._run.failed:
            self._end_in_order(lost)
        else:
            for cell in self._own_cells(lost):
                cell.ask_to_stop("its replica is lost")
        if why_not or not self._left or self._run.closing:
            return why_not or "as many were started as the workload says"
        self._left -= 1
        return self._start(lost.role)

    def add(self, role: str) -> str:
        if self._run.closing or not self._room:
            return "the engine stops" if self._run.closing else "as many were added as anybody needs"
        self._room -= 1
        return self._start(role)

    def _start(self, role: str) -> str:
        """As a real one it tries more than once, so that one of them fails is not to be seen."""
        if self._run.system.strikes("start"):
            self._run.system.send(ROUTER, ReplicaFailed("it was made to fail", role))
            return ""
        names = self._run.start_replica(role).names
        self._run.system.send(ROUTER, ReplicaUp(names))
        watch_replica(self._run.system, names)
        return ""

    def end(self, names: Names) -> None:
        """One after the other, in their order."""
        replica = next(replica for replica in self._run.replicas if replica.names == names)
        # What is left of requests that others have is no end that clients have had; sessions end with their replica.
        loop = replica.scheduler.loop
        replica.lost = replica.lost or bool(len(loop.table.live_rows()) or loop.requests.sessions.by_name)
        replica.left = True
        self.num_left += 1
        self._end_in_order(names)

    def _end_in_order(self, names: Names) -> None:
        self.gone.add(names)
        self._ending.append(deque(self._own_cells(names)))
        self._ending[-1][0].ask_to_stop(LEFT)

    def _own_cells(self, names: Names) -> list[Receiver]:
        """Of the replica's own actors, in their order: a set has another one in each process that runs the schedule."""
        found = [self._run.system.find(name) for name in all_names(names) if name in names.own]
        return [cell for cell in found if cell is not None]

    def stepped(self) -> None:
        """Of those that end, the next actor is asked to, once the one before has, and all was heard that it said; and
        what the gateway said, which may be to the next one."""
        carries_of = self._run.system.network.carries_of
        for cells in self._ending:
            while cells and cells[0].over.is_set() and not carries_of(cells[0].name) and not carries_of(FRONT.gateway):
                cells.popleft()
                if cells:
                    cells[0].ask_to_stop(LEFT)
        self._ending = [cells for cells in self._ending if cells]

    def over(self, name: str, reason: str) -> None:
        """Clients are told by the gateway."""
