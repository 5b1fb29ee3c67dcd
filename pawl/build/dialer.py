"""Links from the process of a replica to those of others, over sockets: the `Dialer` of its linker."""

from __future__ import annotations

import itertools
from pathlib import Path

from pawl.actors.messages.links import PeerLost, PeerMet
from pawl.actors.names import Names
from pawl.actors.runtime.actor import Lane
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import ProcessSystem
from pawl.build.wiring import process_of


class SocketDialer:
    """Waits in the folder in which the link with the front lies."""

    def __init__(self, system: ProcessSystem, sockets: Sockets, front: str, names: Names) -> None:
        """`front` is the address of the link with the front."""
        self._system = system
        self._sockets = sockets
        self._folder = Path(front.removeprefix("ipc://")).parent
        self._linker = names.linker
        self._numbers = itertools.count(1)
        self._peers: dict[str, str] = {}
        """Linkers by their processes."""

    def wait(self, peer: str) -> str:
        process = self._process(peer)
        # An address of its own: the end of an earlier link may still remove that one's.
        address = f"ipc://{self._folder}/{process}.{next(self._numbers)}"
        self._system.connect(process, self._sockets.bind(address))
        return address

    def join(self, peer: str, address: str) -> None:
        self._system.connect(self._process(peer), self._sockets.join(address))

    def end(self, peer: str, reason: str) -> None:
        link = self._system.links.get(process_of(peer))
        if link is not None:
            link.ends(reason)

    def _process(self, peer: str) -> str:
        process = process_of(peer)
        if process in self._system.links:
            raise OSError(f"the link with {process} has not ended yet")
        self._peers[process] = peer
        return process

    # ---- told by the system ----

    def met(self, process: str) -> None:
        """Actors of this process can be sent to."""
        self._system.send(self._linker, PeerMet(self._peers[process]), Lane.CONTROL)

    def lost(self, process: str, reason: str) -> None:
        """They cannot any more."""
        self._system.send(self._linker, PeerLost(self._peers[process], reason), Lane.CONTROL)
