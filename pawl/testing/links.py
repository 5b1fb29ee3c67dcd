"""Links between the replicas of a simulated run: they are refused, and cut with what is on its way."""

from __future__ import annotations

from pawl.actors.messages.links import PeerLost, PeerMet
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Lane
from pawl.actors.simulation.cell import SimulatedCell
from pawl.actors.simulation.system import SimulatedSystem
from pawl.build.wiring import process_of

CUT_S = (0.0, 0.01, 0.5)
"""After which a link may be cut, as both sides notice."""


class SimulatedDialer:
    """The `Dialer` of one replica."""

    def __init__(self, system: SimulatedSystem, names: Names) -> None:
        self._system = system
        self._linker = names.linker

    def wait(self, peer: str) -> str:
        if self._system.strikes("link"):
            raise OSError("no address is free")
        return f"simulated://{self._linker}/{peer}"

    def join(self, peer: str, address: str) -> None:
        if self._system.strikes("link"):
            raise OSError("nobody is there")
        sides = (peer, self._linker), (self._linker, peer)
        for linker, other in sides:
            self._system.send(linker, PeerMet(other), Lane.CONTROL)
        if self._system.strikes("link cut"):
            after_s = CUT_S[self._system.pick("link cut after", [f"{each} s" for each in CUT_S])]
            for linker, other in sides:
                cell = self._system.find(linker)
                if isinstance(cell, SimulatedCell):  # else its replica is lost
                    cell.context.after(after_s, PeerLost(other, "it was cut"))

    def end(self, peer: str, reason: str) -> None:
        processes = {process_of(peer), process_of(self._linker)}
        self._system.network.cut(lambda one, other: {process_of(one), process_of(other)} == processes)
