"""Links from the process of a replica to those of others, over sockets: the `Dialer` of its linker."""

from __future__ import annotations

import itertools
from pathlib import Path

from pawl.actors.messages.links import PeerLost, PeerMet
from pawl.actors.runtime.actor import Lane
from pawl.actors.runtime.processes.keys import Keys
from pawl.actors.runtime.processes.sockets import Sockets
from pawl.actors.runtime.processes.system import ProcessSystem
from pawl.build.hosts.addresses import reached
from pawl.build.ready import Setup
from pawl.build.wiring import process_of


class SocketDialer:
    """Waits in the folder in which the link with the front lies; where there are several hosts, at a port that is free,
    for whoever has the keys."""

    def __init__(self, system: ProcessSystem, sockets: Sockets, setup: Setup, keys: Keys | None) -> None:
        self._system = system
        self._sockets = sockets
        self._setup = setup
        self._keys = keys
        self._linker = setup.names.linker
        self._numbers = itertools.count(1)
        self._peers: dict[str, str] = {}
        """Linkers by their processes."""

    def wait(self, peer: str) -> str:
        process = self._process(peer)
        if (address := self._setup.peers_at) is None:
            # One of its own: the end of an earlier link may still remove that one's.
            folder = Path(self._setup.address.removeprefix("ipc://")).parent
            address = f"ipc://{folder}/{process}.{next(self._numbers)}"
        wire = self._sockets.bind(address, self._keys)
        self._system.connect(process, wire)
        return wire.address

    def join(self, peer: str, address: str) -> None:
        process = self._process(peer)
        if address.startswith("tcp:"):
            address = reached(address, self._setup.address)
        self._system.connect(process, self._sockets.join(address, self._keys))

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
